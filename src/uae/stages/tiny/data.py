"""Endless training data of the world: the ``i``-th sample is a function of ``i``."""

from __future__ import annotations

import torch
from torch import Tensor

from uae.scenes.scene import Scene, render_batch, scene_at


def train_scenes(step: int, batch_size: int, *, seed: int = 0) -> list[Scene]:
    """The scenes of one training step."""
    return [scene_at("train", step * batch_size + i, seed=seed) for i in range(batch_size)]


def images_of(scenes: list[Scene]) -> Tensor:
    """``[B, 3, 48, 48]`` in [0, 1]."""
    return torch.from_numpy(render_batch(scenes))
