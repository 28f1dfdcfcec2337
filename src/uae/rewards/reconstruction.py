"""Rewards of a similarity backbone: how close a reconstruction comes to its source, or a caption.

``R(x, x̂) = cos(f(x), f(x̂))`` with a frozen backbone ``f`` (arXiv 2509.09666). Its reviewers
asked for a control, ``R(x, y) = cos(f(x), g(y))``, which judges the caption without decoding it.
Where a prompt is painted there is no source: ``R(y, x̂) = cos(f(x̂), g(y))`` is CLIPScore (Hessel
et al., EMNLP 2021, arXiv 2104.08718), before its factor and its floor at 0.
"""

from __future__ import annotations

from einops import einsum, repeat
from jaxtyping import Float
from torch import Tensor

from uae.rewards.base import Images
from uae.similarity.backbones import Backbone, EmbeddingCache
from uae.similarity.checkpoints import BackboneError


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
        self.backbone = check_embeds_text(backbone)
        self.cache = cache or EmbeddingCache()

    def __call__(
        self, sources: Images, captions: list[str], reconstructions: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        similarity = cosine(
            self.cache.embed(self.backbone, sources), self.backbone.embed_text(captions)
        )
        return repeat(similarity, "B -> (B K)", K=len(reconstructions) // len(captions))


class CLIPScore:
    """Cosine of the reconstruction's and its caption's, or prompt's, embedding, ``[P*G*K]``;
    differentiable in the reconstruction."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = check_embeds_text(backbone)

    def __call__(
        self, sources: Images, captions: list[str], reconstructions: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        return cosine(
            self.backbone.embed_text(captions), self.backbone.embed(reconstructions.float())
        )


def check_embeds_text(backbone: Backbone) -> Backbone:
    """The backbone itself; a ``BackboneError`` for one that embeds no texts."""
    if backbone.tokenizer is None:
        raise BackboneError(
            "image_text and clip_score: expected a backbone with a tokenizer, "
            f"{backbone.name} from {backbone.provenance.source} has none"
        )
    return backbone


def cosine(sources: Float[Tensor, "P D"], others: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Cosine of each of B = P*N unit vectors with its source; those of one source are adjacent."""
    per_source = repeat(sources.to(others.device), "P D -> (P N) D", N=len(others) // len(sources))
    return einsum(per_source, others, "B D, B D -> B")
