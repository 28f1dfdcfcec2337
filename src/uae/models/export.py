"""Merging: adapters are added to the weights in fp32, the sum is rounded, and what is left of the
update is measured.

    u = W_trained − W_base,   q = round(W_trained) − W_base,   share = ⟨u, q⟩ / ⟨u, u⟩

1 where rounding keeps the update, whatever noise it adds; 0 where each weight rounds back to where
it started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uae.models.load import load_base, load_model
from uae.utils.files import appear


@dataclass(frozen=True)
class Survival:
    """Of one part's update."""

    share: float
    """⟨u, q⟩ / ⟨u, u⟩."""
    num_moved: int
    """Weights that training changed."""


def export(source: str, out: Path, dtype: torch.dtype) -> dict[str, Survival] | None:
    """Write ``source`` to ``out``, merged and whole; by part what survives, None if it names no
    base. Takes the memory of model and base in fp32."""
    model: Any = load_model(source, torch.float32)
    model.merge_adapters()
    base: Any = load_base(source, torch.float32)
    survivals = None
    if base is not None:
        base.merge_adapters()
        survivals = survival(model.state_dict(), base.state_dict(), dtype)
    model.origin = ()  # it is whole now
    appear(out, model.to(dtype).save_pretrained)
    return survivals


@torch.no_grad()
def survival(
    trained: Mapping[str, Tensor], base: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Survival]:
    """By part, of those that moved."""
    sums: dict[str, list[float]] = {}
    for name in [name for name in trained if name in base]:
        before, weight = base[name].double(), trained[name]
        update, rounded = weight.double() - before, weight.to(dtype).double() - before
        if not update.any():
            continue
        part = sums.setdefault(name.split(".")[0], [0.0, 0.0, 0.0])
        for i, value in enumerate(
            ((update * rounded).sum(), update.square().sum(), (update != 0).sum())
        ):
            part[i] += value.item()
    return {part: Survival(kept / total, int(moved)) for part, (kept, total, moved) in sums.items()}
