"""Reward by the model's own understanding: how likely it finds the caption of what it painted.

``R(y, x̂) = log p(y | x̂)``. What the caption leaves open may come out as it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from uae.rewards.base import Images

BATCH_SIZE = 16  # reconstructions looked at together


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
    """How likely the model itself, before training, is to say the caption of the reconstruction.

    Mean log-probability per token, in nats, ``[P*G*K]``; differentiable in the reconstruction. For
    painting alone: captions could please it by saying little.
    """

    def __init__(self, captioner: Judge, instruction: str) -> None:
        self.captioner, self.instruction = captioner, instruction

    def __call__(
        self, sources: Images, captions: list[str], reconstructions: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        texts = [text for text in captions for _ in range(len(reconstructions) // len(captions))]
        images = list(reconstructions.float())
        batches = [slice(start, start + BATCH_SIZE) for start in range(0, len(texts), BATCH_SIZE)]
        with self.captioner.reference():
            values = [
                self.captioner.log_likelihood(images[batch], texts[batch], self.instruction)
                for batch in batches
            ]
        return torch.cat(values).to(reconstructions.device)
