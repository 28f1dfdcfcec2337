"""How weights are written so that what is loaded is what was trained."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

SINGLE = ("F64", "F32")  # as safetensors calls what is computed with in fp32; all else in bf16


def save_exactly(model: Any, folder: Path) -> None:
    """By the library's ``save_pretrained``: in bf16 where that keeps every bit, as of weights that were published so
    and did not learn, else in the dtype it was trained in."""
    dtype = torch.bfloat16 if is_exact_in_bf16(model) else None
    if dtype is not None and any(tensor.dtype != dtype for tensor in _floats(model)):
        model = copy.deepcopy(model).to(dtype)
    model.save_pretrained(folder)


@torch.no_grad()
def is_exact_in_bf16(model: nn.Module) -> bool:
    """Whether bf16 holds every weight."""
    return all(torch.equal(tensor.bfloat16().to(tensor.dtype), tensor) for tensor in _floats(model))


def stored_dtype(folder: Path) -> torch.dtype:
    """What to compute in with a folder's weights: fp32 where its largest tensor is stored so, else bf16."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                part = tensors.get_slice(name)
                sizes[part.get_dtype()] = max(sizes.get(part.get_dtype(), 0), math.prod(part.get_shape()))
    return torch.float32 if sizes and max(sizes, key=sizes.__getitem__) in SINGLE else torch.bfloat16


def _floats(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
