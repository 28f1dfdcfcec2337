"""Two processes teach a decoder what one teaches it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.stages.learn_together import STEPS, learn
from tests.torchrun import printed_by, torchrun
from uae.utils.checkpoint import load_latest


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["nothing", "learning"])
def test_two_processes_learn_what_one_learns(tmp_path: Path, shard: str):
    printed_by(torchrun("tests.stages.learn_together", str(tmp_path / "2"), shard))
    torch.set_num_threads(1)
    learn(tmp_path / "1")
    for name in ("long_captions", "cold_start"):
        one, two = (load_latest(tmp_path / n / name / "checkpoints") for n in ("1", "2"))
        assert one is not None and two is not None and one.step == two.step == STEPS
        for part, weights in one.weights.items():
            for weight, value in weights.items():
                assert torch.allclose(two.weights[part][weight], value, rtol=0, atol=1e-5), weight
        assert (tmp_path / "2" / name / "model").is_dir()
