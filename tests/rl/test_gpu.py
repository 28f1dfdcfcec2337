"""Steps of every kind on a GPU are those of a CPU, but for rounding; a run goes on from one on the
other. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.rl.kinds import KINDS, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_a_cpu_and_a_run_moves_between_them(kind: str, tmp_path: Path) -> None:
    there = run(kind, "cuda", tmp_path / "cuda", 1)
    here = run(kind, "cpu", tmp_path / "cpu", 1)
    for name, value in here[0].items():
        if name.startswith(("reward/", "caption/", "rl/loss", "rl_image/loss")):
            assert there[0][name] == pytest.approx(value, rel=0.02, abs=0.02), name
    on = run(kind, "cpu", tmp_path / "cuda", 2)  # what the GPU has begun
    assert [line["step"] for line in on] == [0, 1]
    assert on[0] == there[0]
