"""Rewards of one half of the loop or both: how close a reconstruction comes to its source, or
either to the caption.

``R(x, x̂) = cos(f(x), f(x̂))`` with a frozen backbone ``f`` (arXiv 2509.09666); the control that
its reviewers asked for, ``R(x, y) = cos(f(x), g(y))``, which judges the caption without decoding
it; and ``R(y, x̂) = log p(y | x̂)``, by which the model's own understanding judges its painting:
what the caption leaves open may come out as it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from einops import einsum, repeat
from jaxtyping import Float
from torch import Tensor

from uae.rewards.base import Images
from uae.similarity.backbones import Backbone, BackboneError, EmbeddingCache

JUDGED = 16  # reconstructions looked at together


class ReconstructionReward:
    """Cosine of the source's and the reconstruction's embedding, ``[P*G*K]``; differentiable in the
    reconstruction."""

    def __init__(self, backbone: Backbone, cache: EmbeddingCache | None = None) -> None:
        self.backbone = backbone
        self.cache = cache or EmbeddingCache()

    def __call__(
        self, sources: Images, captions: list[str], reconstructions: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        return cosine(
            self.cache.embed(self.backbone, sources), self.backbone.embed(reconstructions)
        )


class ImageTextReward:
    """Cosine of the source image's and its caption's embedding, repeated for each of the K
    reconstructions."""

    def __init__(self, backbone: Backbone, cache: EmbeddingCache | None = None) -> None:
        if backbone.tokenizer is None:
            raise BackboneError(
                f"image-text reward: expected a backbone with a tokenizer, {backbone.name} from "
                f"{backbone.provenance.source} has none"
            )
        self.backbone = backbone
        self.cache = cache or EmbeddingCache()

    def __call__(
        self, sources: Images, captions: list[str], reconstructions: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        similarity = cosine(
            self.cache.embed(self.backbone, sources), self.backbone.embed_text(captions)
        )
        return repeat(similarity, "B -> (B K)", K=len(reconstructions) // len(captions))


@runtime_checkable
class Judge(Protocol):
    """A captioner that can say how likely it would be to answer so (``CausalCaptioner``)."""

    def log_likelihood(
        self, images: Sequence[Tensor], texts: Sequence[str], question: str
    ) -> Tensor: ...

    def reference(self) -> AbstractContextManager: ...


def check_judge(captioner: object) -> Judge:
    """The captioner itself; a ValueError for one that can not say how likely a caption is."""
    if not isinstance(captioner, Judge):
        raise ValueError(
            "caption_likelihood: expected a model whose captioner has log_likelihood and "
            f"reference, as CausalCaptioner has, got {type(captioner).__name__}"
        )
    return captioner


class CaptionLikelihood:
    """How likely the model itself, as it was before training, would be to say the caption of the
    reconstruction: mean log-probability per token, in nats, ``[P*G*K]``; differentiable in the
    reconstruction. For painting alone: captions could please it by saying little."""

    def __init__(self, captioner: Judge, instruction: str) -> None:
        self.captioner, self.instruction = captioner, instruction

    def __call__(
        self, sources: Images, captions: list[str], reconstructions: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        texts = [text for text in captions for _ in range(len(reconstructions) // len(captions))]
        pictures = list(reconstructions.float())
        parts = [slice(start, start + JUDGED) for start in range(0, len(texts), JUDGED)]
        with self.captioner.reference():
            values = [
                self.captioner.log_likelihood(pictures[p], texts[p], self.instruction)
                for p in parts
            ]
        return torch.cat(values).to(reconstructions.device)


def cosine(sources: Float[Tensor, "P D"], others: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Cosine of each of B = P*N unit vectors with its source; those of one source are adjacent."""
    per_source = repeat(sources.to(others.device), "P D -> (P N) D", N=len(others) // len(sources))
    return einsum(per_source, others, "B D, B D -> B")
