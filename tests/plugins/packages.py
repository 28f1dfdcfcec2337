"""Evaluation packages, run as their users run them: in a process of their own, without a network.
They change torch's settings for the whole process."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


def need(package: str) -> Path:
    """Its folder; skips, saying so, where it is not installed."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent


def run(*arguments: str | Path, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` to its end."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | offline | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done
