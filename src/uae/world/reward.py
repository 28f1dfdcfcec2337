"""The exact reward of the world: agreement object by object, as its detector sees both pictures."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from uae.rewards.base import Images
from uae.world.detector import Detection, detect
from uae.world.scene import IMAGE_SIZE, Object, Word


def objects(
    sources: Images, captions: list[str], reconstructions: Float[Tensor, "B 3 48 48"]
) -> Float[Tensor, " B"]:
    """F1 of the objects and words that the world's detector is sure of in both pictures; 1 where
    neither has any."""
    shapes = {tuple(image.shape) for image in (*sources, reconstructions[0])}
    if shapes != {(3, IMAGE_SIZE, IMAGE_SIZE)}:
        raise ValueError(
            f"objects: expected the world's pictures of {IMAGE_SIZE}x{IMAGE_SIZE}, got "
            f"{sorted(shapes)}"
        )
    there = [_contents(d) for d in detect(torch.stack([image.cpu() for image in sources]))]
    painted = [_contents(d) for d in detect(reconstructions.detach().float().cpu().clamp(0, 1))]
    per_source = len(painted) // len(there)
    return torch.tensor(
        [_f1(there[i // per_source], p) for i, p in enumerate(painted)],
        device=reconstructions.device,
    )


def _contents(detection: Detection) -> set[tuple[int, Object | Word]]:
    return {
        (found.cell, found.content)
        for found in detection.cells
        if found.sure and found.content is not None
    }


def _f1(wanted: set, got: set) -> float:
    return 2 * len(wanted & got) / (len(wanted) + len(got)) if wanted or got else 1.0
