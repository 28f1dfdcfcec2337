"""The exact reward of the world: agreement object by object, as its detector sees both pictures."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from uae.rewards.base import Images
from uae.world.detector import detect
from uae.world.scene import IMAGE_SIZE, Object, Word


def objects(
    sources: Images, captions: list[str], reconstructions: Float[Tensor, "B 3 48 48"]
) -> Float[Tensor, " B"]:
    """F1 of the objects and words that the detector is sure of; 1 where neither picture has any."""
    shapes = {tuple(image.shape) for image in (*sources, reconstructions[0])}
    if shapes != {(3, IMAGE_SIZE, IMAGE_SIZE)}:
        raise ValueError(
            f"objects: expected the world's pictures of {IMAGE_SIZE}x{IMAGE_SIZE}, got "
            f"{sorted(shapes)}"
        )
    expected = _sure_contents(torch.stack([image.cpu() for image in sources]))
    actual = _sure_contents(reconstructions.detach().float().cpu().clamp(0, 1))
    per_source = len(actual) // len(expected)
    scores = [_f1(expected[i // per_source], contents) for i, contents in enumerate(actual)]
    return torch.tensor(scores, device=reconstructions.device)


def _sure_contents(images: Float[Tensor, "B 3 48 48"]) -> list[set[Object | Word]]:
    """The objects and words, with their cells, that the detector is sure of in each image."""
    return [
        {cell.content for cell in detection.cells if cell.is_sure and cell.content is not None}
        for detection in detect(images)
    ]


def _f1(expected: set, actual: set) -> float:
    total = len(expected) + len(actual)
    return 2 * len(expected & actual) / total if total else 1.0
