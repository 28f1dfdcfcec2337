"""How OpenMP's threads wait is set before torch reads it, unless the user has set it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def spin_count(code: str, **variables: str) -> str:
    """What GNU's OpenMP says it has read, in a process that runs ``code``."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | variables | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = [
        line.split("=")[1].strip(" '")
        for line in done.stderr.splitlines()
        if "GOMP_SPINCOUNT" in line
    ]
    if not found:
        pytest.skip("this torch brings another OpenMP than GNU's")
    return found[0]


@pytest.mark.parametrize(
    "code",
    [
        "import uae, torch",
        "from uae.models import load",
        "import tests.conftest",
        "import sys; sys.path.insert(0, 'examples'); import third_family",
    ],
)
def test_threads_spin_briefly(code: str):
    assert spin_count(code) == "1000"


def test_the_user_decides():
    assert spin_count("import uae, torch", GOMP_SPINCOUNT="77") == "77"
    assert spin_count("import uae, torch", OMP_WAIT_POLICY="passive") == "0"
    assert spin_count("import uae, torch", KMP_BLOCKTIME="1") == spin_count("import torch")
