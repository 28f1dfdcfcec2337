"""The idea, in one page: a unified multimodal model is an auto-encoder whose code is text.

    image ── understanding ──▶ caption ── generation ──▶ reconstruction
      └──────────── similarity(image, reconstruction) ────────────┘

How close the reconstruction comes measures both halves at once: it is the reward (Unified-GRPO,
``rl/train.py``) and the benchmark (Unified-Bench, ``bench/unified.py``). Source: arXiv 2509.09666.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from uae.config import CaptionSettings, DecodeSettings
from uae.models.base import UnifiedModel
from uae.types import Captions, Reconstructions


class AutoEncoding(NamedTuple):
    """P images' captions (G each) and reconstructions (K of each caption)."""

    captions: Captions
    reconstructions: Reconstructions


def autoencode(
    model: UnifiedModel,
    images: Sequence[Tensor],
    captioning: CaptionSettings,
    decoding: DecodeSettings,
    *,
    captions_per_image: int = 1,
    reconstructions_per_caption: int = 1,
    seed: int = 0,
    step: int = 0,
    keys: Sequence[int] | None = None,
) -> AutoEncoding:
    """Encode images (``[3, h, w]`` in [0, 1]) to captions and decode these to images again.

    keys: what draws are keyed by beside seed and step, one for each image; by default its place.
    """
    captions = model.caption(
        images, captioning, group_size=captions_per_image, seed=seed, step=step, keys=keys
    )
    reconstructions = model.reconstruct(
        captions, decoding, group_size=reconstructions_per_caption, seed=seed, step=step, keys=keys
    )
    return AutoEncoding(captions, reconstructions)
