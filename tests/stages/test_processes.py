"""Two processes teach a decoder what one teaches it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.stages.learn_together import STEPS, learn
from uae.utils.checkpoint import load_latest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "tests.stages.learn_together", str(tmp_path / "2")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=500)
    torch.set_num_threads(1)
    learn(tmp_path / "1")
    for name in ("long_captions", "cold_start"):
        one, two = (load_latest(tmp_path / n / name / "checkpoints") for n in ("1", "2"))
        assert one is not None and two is not None and one.step == two.step == STEPS
        for part, weights in one.weights.items():
            for weight, value in weights.items():
                assert torch.allclose(two.weights[part][weight], value, rtol=0, atol=1e-5), weight
        assert (tmp_path / "2" / name / "model").is_dir()
