"""Commands that are groups of others: ``uae tiny build``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from uae.utils.suggest import did_you_mean


def choose(group: str, arguments: Sequence[str], commands: Mapping[str, str]) -> str:
    """The command of the group that is named first; without any, or asked for help, they are listed.

    Raises:
        ValueError: for an unknown one.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        listing = "\n".join(f"  {command:<12} {text}" for command, text in commands.items())
        print(f"usage: uae {group} COMMAND [OPTIONS]        uae {group} COMMAND --help\n\n{listing}")
        raise SystemExit(0)
    if name not in commands:
        raise ValueError(f"expected uae {group} {' or '.join(commands)}, got {name!r}{did_you_mean(name, commands)}")
    return name
