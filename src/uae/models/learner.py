"""What of a language model learns, what it is held to, and how it is written: for every family that
captions.

LoRA learns beside the weights and is switched off for the reference; full training keeps a frozen
copy for it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from uae.models.lora import ADAPTER, Adapters, linear_layers
from uae.models.storage import save_exactly


class Learner(nn.Module):
    """A class of ``transformers`` whose language model learns. ``reference`` answers as it was
    before training."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model: Any = (
            model  # the library annotates its configurations more loosely than they are
        )
        self.tokenizer: Any = tokenizer
        self.adapters = Adapters(self.model)
        self._frozen_copy: nn.ModuleList | None = None
        self.is_whole = False
        """Trained fully since it was loaded: there is no base to name."""

    @property
    def language_model(self) -> nn.Module:
        return self.model.model.language_model

    @property
    def device(self) -> torch.device:
        return self.model.device

    def named_trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def networks(self) -> list[nn.Module]:
        """What has blocks."""
        return [self.model, *([] if self._frozen_copy is None else [self._frozen_copy])]

    def learn(self, lora_rank: int) -> None:
        """From now on, by LoRA, or fully at rank 0."""
        self.add_lora(lora_rank) if lora_rank else self.train_language_model()

    def train_language_model(self) -> None:
        """Full fine-tuning of the language model and its head alone; a frozen copy stays as the
        reference."""
        self.merge_adapters()
        self.is_whole = True
        self.model.requires_grad_(False)
        self.language_model.requires_grad_(True)
        self.model.lm_head.requires_grad_(True)
        self._frozen_copy = copy.deepcopy(nn.ModuleList([self.language_model, self.model.lm_head]))
        self._frozen_copy.requires_grad_(False)

    def merge_adapters(self) -> None:
        """Add them to the weights, in the dtype of these."""
        self.adapters.merge()

    def add_lora(self, rank: int) -> None:
        """LoRA on all linear layers of the language model."""
        self._frozen_copy = None
        self.adapters.learn(
            rank, [f"model.language_model.{name}" for name in linear_layers(self.language_model)]
        )

    @contextmanager
    def reference(self) -> Iterator[None]:
        """In this context the model answers as it was before training: without what learns, or by
        the frozen copy."""
        if self._frozen_copy is None:
            with self.adapters.only(self.adapters.before):
                yield
            return
        with self.instead(*self._frozen_copy):
            yield

    @contextmanager
    def instead(
        self, language_model: nn.Module, lm_head: nn.Module | None = None
    ) -> Iterator[None]:
        """In this context these answer in the place of the model's own."""
        current = self.language_model, self.model.lm_head
        self.model.model.language_model, self.model.lm_head = language_model, lm_head or current[1]
        try:
            yield
        finally:
            self.model.model.language_model, self.model.lm_head = current

    def save_weights(self, folder: Path, *, whole: bool) -> None:
        """Model and tokenizer as their classes save them, and the adapters that lie on it,
        unmerged, in ``adapter``; these alone unless ``whole``."""
        base = folder if whole else Path(self.model.name_or_path)
        if whole:
            save_exactly(self.adapters.without(), folder)
            self.tokenizer.save_pretrained(folder)
        self.adapters.save(folder / ADAPTER, base)
