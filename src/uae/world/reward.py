"""The exact rewards of the world, as its detector sees pictures: agreement of two of them object by
object, how much of what a prompt requires is painted, and how much of a picture a caption says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from uae.rewards.base import Images
from uae.types import Prompt
from uae.world.detector import detect
from uae.world.language import score_caption
from uae.world.prompts import ScenePrompt, exhaustive_prompt, grade
from uae.world.scene import IMAGE_SIZE, Object, Word


def objects(
    sources: Images, captions: list[str], reconstructions: Float[Tensor, "B 3 48 48"]
) -> Float[Tensor, " B"]:
    """F1 of the objects and words that the detector is sure of; 1 where neither picture has any."""
    _check_size([*sources, reconstructions[0]])
    expected = _sure_contents(torch.stack([image.cpu() for image in sources]))
    actual = _sure_contents(reconstructions.detach().float().cpu().clamp(0, 1))
    per_source = len(actual) // len(expected)
    scores = [_f1(expected[i // per_source], contents) for i, contents in enumerate(actual)]
    return torch.tensor(scores, device=reconstructions.device)


def graded(
    sources: Images,
    captions: list[str],
    reconstructions: Float[Tensor, "B 3 48 48"],
    prompts: Sequence[Prompt] = (),
) -> Float[Tensor, " B"]:
    """The ``grade`` of each picture: for its prompt, or else for the exhaustive caption of its
    source, as the detector sees that."""
    _check_size([*sources, reconstructions[0]])
    targets = [prompt for prompt in prompts if isinstance(prompt, ScenePrompt)]
    if len(targets) != len(prompts) or not (prompts or len(sources)):
        raise ValueError(
            "expected the embedded world's prompts, which know what they require, or images that "
            "were captioned"
        )
    if not targets:
        detections = detect(torch.stack([image.cpu() for image in sources]))
        targets = [exhaustive_prompt(detection.scene) for detection in detections]
    detections = detect(reconstructions.detach().float().cpu().clamp(0, 1))
    per_target = len(detections) // len(targets)
    grades = [grade(targets[i // per_target], each) for i, each in enumerate(detections)]
    return torch.tensor(grades, device=reconstructions.device)


def caption_objects(
    sources: Images, captions: list[str], reconstructions: Float[Tensor, "B 3 48 48"]
) -> Float[Tensor, " B"]:
    """Of the caption alone: (objects described with every attribute, minus wrong mentions) over the
    objects that the detector sees in the source; what a perfect reader of captions would pay."""
    _check_size(list(sources))
    detections = detect(torch.stack([image.cpu() for image in sources]))
    per_source, per_caption = len(captions) // len(sources), len(reconstructions) // len(captions)
    scores = [score_caption(c, detections[i // per_source].scene) for i, c in enumerate(captions)]
    values = [(s.complete - (s.mentions - s.correct)) / max(s.objects, 1) for s in scores]
    return torch.tensor(values, device=reconstructions.device).repeat_interleave(per_caption)


def _check_size(images: Sequence[Tensor]) -> None:
    shapes = {tuple(image.shape) for image in images}
    if shapes != {(3, IMAGE_SIZE, IMAGE_SIZE)}:
        raise ValueError(
            f"expected the world's pictures of {IMAGE_SIZE}x{IMAGE_SIZE}, got {sorted(shapes)}"
        )


def _sure_contents(images: Float[Tensor, "B 3 48 48"]) -> list[set[Object | Word]]:
    """The objects and words, with their cells, that the detector is sure of in each image."""
    return [
        {cell.content for cell in detection.cells if cell.is_sure and cell.content is not None}
        for detection in detect(images)
    ]


def _f1(expected: set, actual: set) -> float:
    total = len(expected) + len(actual)
    return 2 * len(expected & actual) / total if total else 1.0
