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
from uae.world.detector import CellReading, Detection, detect
from uae.world.language import exhaustive_caption
from uae.world.scene import SIZES, Object, Scene, Split, Word, scene_at

ATTRIBUTES = ("cell", "shape", "color", "size")


@dataclass(frozen=True)
class Fidelity:
    """How much of N scenes the detector reads in N pictures."""

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
    """Pictures against the scenes that they should show.

    Raises:
        ValueError: when there are not as many pictures as scenes, or none.
    """
    if len(scenes) != len(images) or not scenes:
        raise ValueError(
            f"expected one image for each scene and at least one, got {len(images)} and "
            f"{len(scenes)}"
        )
    return fidelity_of_detections(scenes, detect(images.clamp(0, 1)))


def fidelity_of_detections(scenes: Sequence[Scene], detections: Sequence[Detection]) -> Fidelity:
    """As ``fidelity``, from what the detector has read."""
    pairs = list(zip(scenes, detections, strict=True))
    objects = [(o, d.cells[o.cell]) for scene, d in pairs for o in scene.objects]
    words = [(scene.word, d.cells[scene.word.cell]) for scene, d in pairs if scene.word]
    return Fidelity(
        objects_exact=Share.of(_is_exact(cell, o) for o, cell in objects),
        by_attribute={
            name: Share.of(_agrees(cell, o, name) for o, cell in objects) for name in ATTRIBUTES
        },
        by_size={
            size: Share.of(_is_exact(cell, o) for o, cell in objects if o.size == size)
            for size in SIZES
        },
        hallucinated_per_image=sum(_num_hallucinated(*pair) for pair in pairs) / len(pairs),
        words_exact=Share.of(_is_exact(cell, word) for word, cell in words),
        backgrounds_exact=Share.of(d.background == scene.background for scene, d in pairs),
        unsure_cells=Share.of(not cell.is_sure for d in detections for cell in d.cells),
        scenes_exact=Share.of(_is_scene_exact(*pair) for pair in pairs),
    )


def _is_exact(cell: CellReading, content: Object | Word | None) -> bool:
    return cell.is_sure and cell.content == content


def _agrees(cell: CellReading, o: Object, attribute: str) -> bool:
    """The cell surely shows an object that has the attribute in common with ``o``."""
    return (
        cell.is_sure
        and isinstance(cell.content, Object)
        and getattr(cell.content, attribute) == getattr(o, attribute)
    )


def _num_hallucinated(scene: Scene, detection: Detection) -> int:
    occupied = {o.cell for o in scene.objects}
    return sum(o.cell not in occupied for o in detection.objects)


def _is_scene_exact(scene: Scene, detection: Detection) -> bool:
    cells = zip(detection.cells, scene.contents, strict=True)
    are_exact = all(_is_exact(cell, content) for cell, content in cells)
    return are_exact and detection.background == scene.background


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
    """What the decoder paints from exhaustive true captions of scenes of ``min_objects`` together.

    ``decoding`` is the model's own by default.
    """
    scenes = scenes_with(min_objects, split, num_objects, with_word)
    texts = [exhaustive_caption(scene) for scene in scenes]
    return fidelity(scenes, paint(model, texts, decoding or model.decoding, seed))


def decoder_report(
    model: UnifiedModel,
    *,
    min_objects: int = 1000,
    decoding: DecodeSettings | None = None,
) -> dict[str, Fidelity]:
    """``decoder_fidelity`` without words, on five objects, on unseen pairs, and with words."""
    cases: dict[str, tuple[Split, int | None, bool]] = {
        "test": ("test", None, False),
        "five_objects": ("test", 5, False),
        "unseen": ("unseen", None, False),
        "words": ("test", None, True),
    }
    return {
        name: decoder_fidelity(
            model, split, number, with_word=with_word, min_objects=min_objects, decoding=decoding
        )
        for name, (split, number, with_word) in cases.items()
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
    model: UnifiedModel,
    texts: Sequence[str],
    decoding: DecodeSettings,
    seed: int = 0,
    group_size: int = 1,
) -> Tensor:
    """``group_size`` images of each text, ``[N, 3, 48, 48]`` in [0, 1], computed in bf16 as in
    training."""
    with autocast(model.encoder.device, use_bf16=True):
        painted = model.generate(list(texts), decoding, group_size=group_size, seed=seed)
    return painted.images.float().cpu().clamp(0, 1)
