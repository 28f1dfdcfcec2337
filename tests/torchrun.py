"""Several processes of this machine, as users start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TWO_HERE = ("--standalone", "--nproc_per_node", "2")


def torchrun(
    module: str,
    *arguments: str,
    launcher: tuple[str, ...] = TWO_HERE,
    folder: Path = ROOT,
    stderr: int = subprocess.STDOUT,
) -> subprocess.Popen[str]:
    """``python -m module arguments`` in each process, a thread in each, which works in the folder;
    started, not awaited."""
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", module]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


def say(line: str) -> None:
    """Prints it in one write, which what another process says at that moment cannot cut in two:
    ``print`` writes each part on its own where Python does not buffer."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def printed_by(run: subprocess.Popen[str], seconds: float = 800) -> str:
    """All that it printed, once it has ended as it should."""
    printed = run.communicate(timeout=seconds)[0]
    assert run.returncode == 0, printed
    return printed
