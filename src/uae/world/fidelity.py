"""How much of a scene survives in a picture, object by object, as the exact detector sees it.

An object is *exact* when the detector is sure of its cell and reads the same shape, colour and size
there. It is *hallucinated* when it is sure of an object in a cell that has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from uae.bench.result import Share, shares_to_json
from uae.config import DecodeSettings
from uae.models.base import UnifiedModel
from uae.utils.device import autocast
from uae.world.detector import Detection, Found, detect
from uae.world.language import exhaustive_caption
from uae.world.scene import SIZES, Object, Scene, Split, Word, scene_at

ATTRIBUTES = ("cell", "shape", "color", "size")


@dataclass(frozen=True)
class Fidelity:
    """What the detector finds of N scenes in N pictures."""

    objects_exact: Share
    by_attribute: dict[str, Share]
    """Objects with this attribute right; ``cell``: any object is surely there."""
    by_size: dict[str, Share]
    """Objects exactly right, among those of a size."""
    hallucinated_per_image: float
    words_exact: Share
    """Among scenes with a word: the right word in the right cell."""
    backgrounds_exact: Share
    unsure_cells: Share
    scenes_exact: Share
    """Everything right: all cells and the background."""

    def to_json(self) -> dict[str, Any]:
        return {
            "objects_exact": self.objects_exact.to_json(),
            "by_attribute": shares_to_json(self.by_attribute),
            "by_size": shares_to_json(self.by_size),
            "hallucinated_per_image": self.hallucinated_per_image,
            "words_exact": self.words_exact.to_json(),
            "backgrounds_exact": self.backgrounds_exact.to_json(),
            "unsure_cells": self.unsure_cells.to_json(),
            "scenes_exact": self.scenes_exact.to_json(),
        }


def fidelity(scenes: Sequence[Scene], images: Float[Tensor, "N 3 48 48"]) -> Fidelity:
    """Compare pictures with the scenes they should show.

    Raises:
        ValueError: when there are not as many pictures as scenes, or none.
    """
    if len(scenes) != len(images) or not scenes:
        raise ValueError(
            f"expected one image for each scene and at least one, got {len(images)} and "
            f"{len(scenes)}"
        )
    return compare(scenes, detect(images.clamp(0, 1)))


def compare(scenes: Sequence[Scene], detections: Sequence[Detection]) -> Fidelity:
    """As ``fidelity``, of pictures that the detector has already seen."""
    seen = list(zip(scenes, detections, strict=True))
    objects = [(o, d.cells[o.cell]) for scene, d in seen for o in scene.objects]
    words = [(scene.word, d.cells[scene.word.cell]) for scene, d in seen if scene.word]
    return Fidelity(
        objects_exact=Share.of(_shows(found, o) for o, found in objects),
        by_attribute={
            name: Share.of(_agrees(found, o, name) for o, found in objects) for name in ATTRIBUTES
        },
        by_size={
            size: Share.of(_shows(f, o) for o, f in objects if o.size == size) for size in SIZES
        },
        hallucinated_per_image=sum(_hallucinated(scene, d) for scene, d in seen) / len(seen),
        words_exact=Share.of(_shows(found, word) for word, found in words),
        backgrounds_exact=Share.of(d.background == scene.background for scene, d in seen),
        unsure_cells=Share.of(not found.sure for d in detections for found in d.cells),
        scenes_exact=Share.of(_all_right(scene, d) for scene, d in seen),
    )


def _shows(found: Found, content: Object | Word | None) -> bool:
    return found.sure and found.content == content


def _agrees(found: Found, o: Object, attribute: str) -> bool:
    return (
        found.sure
        and isinstance(found.content, Object)
        and getattr(found.content, attribute) == getattr(o, attribute)
    )


def _hallucinated(scene: Scene, detection: Detection) -> int:
    occupied = {o.cell for o in scene.objects}
    return sum(
        f.cell not in occupied for f in detection.cells if f.sure and isinstance(f.content, Object)
    )


def _all_right(scene: Scene, detection: Detection) -> bool:
    contents: dict[int, Object | Word] = {o.cell: o for o in scene.objects}
    if scene.word:
        contents[scene.word.cell] = scene.word
    cells = all(_shows(found, contents.get(found.cell)) for found in detection.cells)
    return cells and detection.background == scene.background


def psnr(images: Float[Tensor, "N 3 h w"], others: Float[Tensor, "N 3 h w"]) -> float:
    """Peak signal-to-noise ratio in dB, mean over pairs of images in [0, 1]."""
    return (-10 * (others - images).square().mean((1, 2, 3)).log10()).mean().item()


# --- the decoder alone ---------------------------------------------------------------------------


def decoder_fidelity(
    model: UnifiedModel,
    split: Split = "test",
    num_objects: int | None = None,
    *,
    with_word: bool | None = False,
    min_objects: int = 1000,
    decoding: DecodeSettings | None = None,
    seed: int = 0,
) -> Fidelity:
    """What the decoder makes of exhaustive true captions, over as many scenes as it takes for
    ``min_objects``; painted as the model does by itself unless ``decoding`` says otherwise."""
    scenes = scenes_with(min_objects, split, num_objects, with_word)
    images = paint(
        model, [exhaustive_caption(scene) for scene in scenes], decoding or model.decoding, seed
    )
    return fidelity(scenes, images)


def decoder_report(
    model: UnifiedModel,
    *,
    min_objects: int = 1000,
    decoding: DecodeSettings | None = None,
) -> dict[str, Fidelity]:
    """The decoder on scenes without words, with exactly five objects, of unseen pairs, and with a
    word each."""
    cases = {
        "test": ("test", None, False),
        "five_objects": ("test", 5, False),
        "unseen": ("unseen", None, False),
        "words": ("test", None, True),
    }
    return {
        name: decoder_fidelity(
            model, split, number, with_word=word, min_objects=min_objects, decoding=decoding
        )
        for name, (split, number, word) in cases.items()
    }


def scenes_with(
    min_objects: int, split: Split, num_objects: int | None = None, with_word: bool | None = None
) -> list[Scene]:
    """The first scenes of a split that hold at least so many objects together."""
    scenes: list[Scene] = []
    total = 0
    while total < min_objects:
        scenes.append(scene_at(split, len(scenes), num_objects=num_objects, with_word=with_word))
        total += len(scenes[-1].objects)
    return scenes


@torch.no_grad()
def paint(
    model: UnifiedModel, texts: Sequence[str], decoding: DecodeSettings, seed: int = 0
) -> Tensor:
    """One image of each text, ``[N, 3, 48, 48]`` in [0, 1], computed in bf16 as in training."""
    with autocast(model.encoder.device, use_bf16=True):
        return model.generate(list(texts), decoding, seed=seed).images.float().cpu().clamp(0, 1)
