"""How much captions say of their scenes, and how much of it is true."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from uae.bench.result import Share
from uae.config import CaptionSettings
from uae.models.base import Captioner
from uae.world.data import pictures
from uae.world.language import (
    INSTRUCTIONS,
    LEVELS,
    NUMBERS,
    caption,
    read_caption,
    score_caption,
)
from uae.world.scene import Scene


def caption_quality(
    texts: Sequence[str], scenes: Sequence[Scene], truncated: Sequence[bool] | None = None
) -> dict[str, Any]:
    """How much captions say and how much of it is true, times 100.

    ``tokens`` are words per caption, not a share. ``precision`` is the share of mentions that are
    true, None when nothing is mentioned. ``recall`` is the share of objects that a true mention
    names, whatever it leaves out. ``recall_complete`` and ``small_recall`` count only mentions that
    state every attribute, of all objects and of small ones. ``levels``: what level captions are of.
    """
    scores = [score_caption(text, scene) for text, scene in zip(texts, scenes, strict=True)]
    total = {name: sum(getattr(s, name) for s in scores) for name in vars(scores[0])}
    levels = [level_of(text) for text in texts]
    return {
        "tokens": sum(len(text.split()) for text in texts) / len(texts),
        "precision": Share(total["correct"], total["mentions"]).percent,
        "recall": Share(total["correct"], total["objects"]).percent,
        "recall_complete": Share(total["complete"], total["objects"]).percent,
        "small_recall": Share(total["small_complete"], total["small_objects"]).percent,
        "truncated": Share.of(truncated).percent if truncated is not None else None,
        "empty": Share.of(not text.strip() for text in texts).percent,
        "levels": {name: Share.of(level == name for level in levels).percent for name in LEVELS},
    }


def true_at_the_same_level(texts: Sequence[str], scenes: Sequence[Scene]) -> list[str]:
    """For each caption, a true one of its scene that says as much."""
    return [
        caption(scene, level_of(text), random.Random(f"true {i}"))
        for i, (text, scene) in enumerate(zip(texts, scenes, strict=True))
    ]


def level_of(text: str) -> str:
    """The level of detail of a caption, by what it states.

    One that names all objects is not ``salient``.
    """
    tokens = set(text.split())
    mentions = read_caption(text).mentions
    if not mentions:
        return "count" if tokens & set(NUMBERS) else "gist"
    if any(m.size is not None for m in mentions):
        return "exhaustive"
    if any(m.cell is not None for m in mentions):
        return "layout"
    return "salient" if "other" in tokens else "objects"


@torch.no_grad()
def measure_captions(
    captioner: Captioner, scenes: Sequence[Scene], captioning: CaptionSettings, *, seed: int = 0
) -> dict[str, Any]:
    """``caption_quality`` of a model's captions."""
    captions = captioner.caption(list(pictures(scenes)), captioning, seed=seed)
    return caption_quality(captions.texts, scenes, captions.truncated.tolist())


def captions_by_instruction(
    captioner: Captioner, scenes: Sequence[Scene]
) -> dict[str, dict[str, Any]]:
    """``caption_quality`` of greedy captions under each instruction: open, brief, detailed."""
    return {
        name: measure_captions(captioner, scenes, CaptionSettings(text, temperature=0.0))
        for name, text in INSTRUCTIONS.items()
    }
