"""What of a decoder learns, and what it is held to: its transformer, by LoRA or fully."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from uae.models.lora import Adapters

ATTENTION = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)
"""The projections of joint attention, as diffusers names them in every such transformer."""


class TransformerLearner(nn.Module):
    """A transformer of ``diffusers`` that learns. ``reference`` answers as it was before
    training."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.adapters = Adapters(transformer)
        self._frozen_copy: Any = None
        self.is_whole = False
        """Trained fully since it was loaded: there is no base to name."""

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def named_trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The transformer's, or its LoRA's; none while it is frozen."""
        return {name: p for name, p in self.transformer.named_parameters() if p.requires_grad}

    def networks(self) -> list[nn.Module]:
        """What has blocks."""
        return [self.transformer, *([] if self._frozen_copy is None else [self._frozen_copy])]

    def learn(self, lora_rank: int) -> None:
        """From now on, by LoRA, or fully at rank 0."""
        self.add_lora(lora_rank) if lora_rank else self.train_transformer()

    def train_transformer(self, *, with_reference: bool = True) -> None:
        """Full fine-tuning of the transformer alone; a frozen copy stays as the reference."""
        self.adapters.merge()
        self.transformer.requires_grad_(True)
        self.is_whole = True
        frozen = copy.deepcopy(self.transformer).requires_grad_(False) if with_reference else None
        object.__setattr__(self, "_frozen_copy", frozen)

    def add_lora(self, rank: int) -> None:
        """LoRA on the attention's projections, alpha twice the rank, Gaussian start (Flow-GRPO's
        SD3.5 recipe)."""
        object.__setattr__(self, "_frozen_copy", None)
        self.adapters.learn(rank, ATTENTION)

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """In this context the transformer runs compiled code, compiled where it is first run; any
        batch and any length of text share it."""
        own = {name: v for name, v in vars(self.transformer).items() if name == "forward"}
        self.transformer.forward = torch.compile(self.transformer.forward, dynamic=True)
        try:
            yield
        finally:
            del self.transformer.forward
            vars(self.transformer).update(own)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """In this context the transformer is as it was before training."""
        if self._frozen_copy is None:
            with self.adapters.only(self.adapters.before):
                yield
            return
        now, self.transformer = self.transformer, self._frozen_copy
        try:
            yield
        finally:
            self.transformer = now
