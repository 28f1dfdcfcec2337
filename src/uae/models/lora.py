"""LoRA by ``peft`` on some linear layers of a model, the same start in every run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn


def add_lora(model: nn.Module, rank: int, target_modules: Sequence[str]) -> Any:
    """Layers are replaced in place; alpha is twice the rank, the start Gaussian (arXiv 2509.09666 §4). peft's view of
    the model, which switches the adapter off and merges it."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, init_lora_weights="gaussian", target_modules=list(target_modules))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # so that equal runs have equal weights
        return get_peft_model(model, config)  # type: ignore[arg-type]


def merged(adapter: Any) -> Any:
    """A copy of the model with the adapter's product added to its weights."""
    return copy.deepcopy(adapter).merge_and_unload()
