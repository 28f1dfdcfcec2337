"""What tests of captions by vLLM share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from uae.config import CaptionSettings
from uae.models.encoders.qwen_vl import QwenVL
from uae.types import Captions
from uae.world.scene import render_batch, scene_at

ROOT = Path(__file__).parents[2]
REASON = "vLLM is not installed: pip install 'unified-autoencoder[vllm]'"
GREEDY, DRAWN = CaptionSettings(temperature=0.0), CaptionSettings(temperature=0.8)
# longer than a block of the prefix cache, so that it is kept and found again
LONG = CaptionSettings("is there a red ring on the left of a blue square ? " * 20, temperature=0.0)


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return list(torch.from_numpy(render_batch([scene_at("test", i) for i in range(6)])))


def built_in(captioner: QwenVL, images: list[Tensor], settings: CaptionSettings) -> Captions:
    sampler, captioner.sampler = captioner.sampler, None
    try:
        return captioner.caption(images, settings)
    finally:
        captioner.sampler = sampler


def change(captioner: QwenVL, lora_rank: int) -> None:
    """Other weights, that answer otherwise."""
    captioner.learn(lora_rank)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in captioner.named_trainable_parameters().values():
            noise = torch.randn(parameter.shape, generator=draws)
            parameter += noise * (0.1 if lora_rank else 0.1 * parameter.std())


def check_same(captions: Captions, expected: Captions) -> None:
    assert captions.texts == expected.texts
    assert torch.equal(captions.rollout.actions, expected.rollout.actions)
    assert torch.equal(captions.rollout.mask, expected.rollout.mask)
    assert torch.equal(captions.truncated, expected.truncated)
    near = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(captions.rollout.log_probs, expected.rollout.log_probs, **near)


def gap(captioner: QwenVL, captions: Captions) -> float:
    """The largest difference of the engine's log-probabilities to ours."""
    with torch.no_grad():
        ours = captioner.evaluate(captions.rollout, with_kl=False).log_probs
    return (ours - captions.rollout.log_probs).abs()[captions.rollout.mask].max().item()


def said_by(num_processes: int, folder: Path, server: str = "") -> dict[str, list[str]]:
    """What the processes of a group say of four images, by the image's place."""
    folder.mkdir()
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    program = ["--module", "tests.models.vllm_group", str(folder), server]
    command = [sys.executable, *launched, str(num_processes), *program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, list[str]] = {}
    for file in folder.iterdir():
        size, total, captions = json.loads(file.read_text())
        assert size == total == num_processes  # they were a group, and are one afterwards
        said |= captions
    return said


def check_it_follows(served: QwenVL, images: list[Tensor], lora_rank: int) -> None:
    """Captions are those of the weights as they are, also after these have changed."""
    before = served.caption(images, GREEDY)
    change(served, lora_rank)
    after = served.caption(images, GREEDY)
    assert after.texts != before.texts
    check_same(after, built_in(served, images, GREEDY))
    drawn = served.caption(images, DRAWN, group_size=4)
    assert len(set(drawn.texts)) > 6  # they are drawn
    assert gap(served, drawn) < 1e-3
