"""The idea, in one page: a unified multimodal model is an auto-encoder whose code is text.

    image ── understanding ──▶ caption ── generation ──▶ reconstruction
      └────── similarity(image, reconstruction) ──────┘

How close the reconstruction comes measures both halves at once: it is the reward (Unified-GRPO,
``rl/train.py``) and the benchmark (Unified-Bench, ``bench/unified``). Source: arXiv 2509.09666.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    images: Tensor | Sequence[Tensor],
    captioning: CaptionSettings | None = None,
    decoding: DecodeSettings | None = None,
    *,
    captions_per_image: int = 1,
    reconstructions_per_caption: int = 1,
    seed: int = 0,
    step: int = 0,
    keys: Sequence[int] | None = None,
) -> AutoEncoding:
    """Encode images to captions, and decode these to images again.

    images: P of any sizes, ``[3, h, w]`` or a batch ``[P, 3, h, w]``, in [0, 1]. captioning,
    decoding: by default the model's own. keys: of draws, one an image; by default its place.
    Returns P·G captions and ``[P·G·K, 3, H, W]`` reconstructions in [0, 1], an image's adjacent.

    >>> import torch, uae
    >>> captions, reconstructions = uae.autoencode(uae.load_model("tiny"), torch.rand(2, 3, 48, 48))
    >>> len(captions.texts), tuple(reconstructions.images.shape)
    (2, (2, 3, 48, 48))
    """
    draws: dict[str, Any] = {"seed": seed, "step": step, "keys": keys}
    captions = model.caption(
        list(images), captioning or model.captioning, group_size=captions_per_image, **draws
    )
    reconstructions = model.reconstruct(
        captions, decoding or model.decoding, group_size=reconstructions_per_caption, **draws
    )
    return AutoEncoding(captions, reconstructions)
