"""A real, small Unified-GRPO run in a process of its own, for tests to kill: ``tiny_run.py FOLDER
STEPS``."""

from __future__ import annotations

import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.models.real_layouts import JANUS_SIDE, write_janus
from uae.config import CaptionSettings, DecodeSettings
from uae.models.llm_diffusion import LLMDiffusion
from uae.models.load import load_model
from uae.rewards.base import WeightedSum
from uae.rl.config import TrainConfig
from uae.rl.losses import Objective
from uae.rl.train import train
from uae.utils.checkpoint import load_latest
from uae.world.data import SceneImages
from uae.world.models import build_captioner, build_decoder, build_llm_diffusion, build_vae


def build_model() -> LLMDiffusion:
    """The tiny architecture with random weights, as every process draws them."""
    torch.manual_seed(0)
    model = build_llm_diffusion(build_captioner(), build_decoder(build_vae()))
    model.begin_training(0, captions=True, decoding=DecodeSettings())
    return model


SMALL_IMAGES = DecodeSettings(height=JANUS_SIDE, width=JANUS_SIDE)
"""What the small Janus paints."""


@cache
def _small_janus() -> Path:
    torch.manual_seed(0)
    return write_janus(Path(tempfile.mkdtemp()))


def build_small_janus() -> Any:
    """Of 16 image tokens, where the shipped one has 144; random weights."""
    model = load_model(str(_small_janus()))
    torch.manual_seed(0)
    return model


def likeness(sources, captions, reconstructions):
    """Minus the mean squared difference: cheap, and different for each reconstruction."""
    per_source = len(reconstructions) // len(sources)
    fitted = torch.nn.functional.interpolate(torch.stack(list(sources)), reconstructions.shape[-2:])
    repeated = fitted.repeat_interleave(per_source, 0)
    return -(repeated - reconstructions).square().mean((1, 2, 3))


def config(num_steps: int, **changes) -> TrainConfig:
    settings = {
        "num_steps": num_steps,
        "images_per_step": 2,
        "group_size": 3,
        "captioning": CaptionSettings(max_new_tokens=5),
        "decoding": DecodeSettings(num_steps=1),
        "objective": Objective(kl_coef=0.01),
        "learning_rate": 1e-3,
        "save_every": 2,
        "probe_every": 3,
    }
    return TrainConfig(**(settings | changes))


def reward() -> WeightedSum:
    return WeightedSum({"likeness": (1.0, likeness)})


def check_same_weights(first: Path, second: Path, step: int) -> None:
    """The runs in both folders have come to this step, with the same bits."""
    one, other = (load_latest(folder / "checkpoints") for folder in (first, second))
    assert one is not None and other is not None and one.step == other.step == step
    for name, value in one.weights["policy"].items():
        assert torch.equal(value, other.weights["policy"][name])


if __name__ == "__main__":
    torch.set_num_threads(2)
    train(
        build_model(),
        reward(),
        SceneImages(),
        config(int(sys.argv[2])),
        Path(sys.argv[1]),
        {"model": "test"},
    )
