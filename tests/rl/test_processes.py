"""Two processes train what one trains: the same losses, metrics and weights, but for rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.rl.kinds import KINDS, run
from uae.utils.checkpoint import Checkpoint, load_latest
from uae.utils.metrics import read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 3


def by_processes(number: int, *arguments: str) -> str:
    """What ``torchrun`` prints of ``kinds.py``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(number), "-m", "tests.rl.kinds", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def check_same(one: Path, two: Path) -> None:
    """Metrics and weights of two runs."""
    lines, others = (read_metrics(folder / "metrics.jsonl") for folder in (one, two))
    assert len(lines) == len(others) == STEPS
    for line, other in zip(lines, others, strict=True):
        assert line.keys() == other.keys()
        for name in line:
            if not name.startswith("time/"):
                assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-5), name
    first, second = (last(folder) for folder in (one, two))
    for part, weights in first.weights.items():
        for name, value in weights.items():
            assert torch.allclose(second.weights[part][name], value, rtol=0, atol=1e-5), name


def last(folder: Path) -> Checkpoint:
    checkpoint = load_latest(folder / "checkpoints")
    assert checkpoint is not None and checkpoint.step == STEPS
    return checkpoint


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_take_the_steps_of_one(tmp_path: Path):
    printed = by_processes(2, str(tmp_path / "two"), str(STEPS), *KINDS)
    assert printed.count("processes 2") == 2
    torch.set_num_threads(1)
    for kind in KINDS:
        run(kind, "cpu", tmp_path / "one" / kind, STEPS)
        check_same(tmp_path / "one" / kind, tmp_path / "two" / kind)


def test_two_processes_resume_what_one_began(tmp_path: Path):
    kind = "captions"
    run(kind, "cpu", tmp_path / "one" / kind, 2)
    by_processes(2, str(tmp_path / "one"), str(STEPS), kind)
    run(kind, "cpu", tmp_path / "whole" / kind, STEPS)
    check_same(tmp_path / "whole" / kind, tmp_path / "one" / kind)
