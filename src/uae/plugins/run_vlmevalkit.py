"""VLMEvalKit's own ``run.py``, which then knows our models:

python -m uae.plugins.run_vlmevalkit VLMEvalKit/run.py --config config.json
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

USAGE = "python -m uae.plugins.run_vlmevalkit VLMEvalKit/run.py --config config.json"


def main() -> None:
    script, *arguments = sys.argv[1:] or [""]
    if not Path(script).is_file():
        raise SystemExit(f"expected VLMEvalKit's run.py, got {script!r}; call {USAGE}")
    try:
        plugin = importlib.import_module("uae.plugins.vlmevalkit")
    except ImportError as error:
        raise SystemExit(f"expected VLMEvalKit, got {error}; install it here first") from error
    plugin.register()
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
