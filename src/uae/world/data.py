"""Endless training data of the world: the ``i``-th sample is a function of ``i``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from uae.world.scene import Scene, first_scenes, render_batch, scene_at


def train_scenes(step: int, batch_size: int, *, seed: int = 0) -> list[Scene]:
    """The scenes of one training step."""
    return [scene_at("train", step * batch_size + i, seed=seed) for i in range(batch_size)]


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """``[B, 3, 48, 48]`` in [0, 1]."""
    return torch.from_numpy(render_batch(list(scenes)))


class SceneImages:
    """An image source: scenes of the training split, never the same twice.

    The probe's are of the validation split.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def batch(self, step: int, num_images: int) -> list[Tensor]:
        return list(pictures(train_scenes(step, num_images, seed=self.seed)))

    def probe(self, num_images: int) -> list[Tensor]:
        return list(pictures(first_scenes("validation", num_images)))
