"""``python -m uae``, as launchers of several processes start it."""

from uae.cli import main

if __name__ == "__main__":
    main()
