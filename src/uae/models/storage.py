"""How weights are written so that what is loaded is what was trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def save_exactly(model: Any, folder: Path) -> None:
    """By the library's ``save_pretrained``: in bf16 where that keeps every bit, as of weights that
    were published so and did not learn, else in the dtype it was trained in."""
    dtype = torch.bfloat16 if is_exact_in_bf16(model) else None
    if dtype is not None and any(tensor.dtype != dtype for tensor in _floats(model)):
        model = copy.deepcopy(model).to(dtype)
    model.save_pretrained(folder)


@torch.no_grad()
def is_exact_in_bf16(model: nn.Module) -> bool:
    """Whether bf16 holds every weight."""
    return all(torch.equal(tensor.bfloat16().to(tensor.dtype), tensor) for tensor in _floats(model))


def _floats(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
