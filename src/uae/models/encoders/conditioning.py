"""A captioner that is also the decoder's text encoder: its hidden states condition what is painted.

Who encodes may be held apart from what learns: as it was when it was held, in the weights of its
own or by the adapters that counted then.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from uae.models.encoders.causal import CausalCaptioner
from uae.models.encoders.tokens import cut_inside, pad
from uae.models.lora import ADAPTER, Lora
from uae.models.storage import save_exactly
from uae.utils.weights import load_pretrained


class ConditioningCaptioner(CausalCaptioner):
    """Captioner and text encoder."""

    text_model_class: Any
    """Of the language model, where it is saved by itself."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(model, tokenizer)
        self._text_model: nn.Module | None = None
        self._text_adapters: tuple[str, ...] | None = None

    # --- what a family says of itself ------------------------------------------------------------

    @abstractmethod
    def text_tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text in the message that the decoder is to paint, template included."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path, *, whole: bool = True) -> None:
        """As the family's ``from_pretrained`` loads it; only its adapters unless ``whole``."""

    # --- text as the decoder's condition ---------------------------------------------------------

    @property
    def state_width(self) -> int:
        """Of the hidden states."""
        return self.model.config.text_config.hidden_size

    def text_states(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[Float[Tensor, "N L D"], Bool[Tensor, "N L"]]:
        """Last hidden states of ``text_tokens``; a text of more than ``max_length`` loses its end,
        not the template's.

        Right-padded; the states of padding are meaningless and masked out.
        """
        (empty,) = self.text_tokens([""])
        rows = [cut_inside(row, empty, max_length) for row in self.text_tokens(texts)]
        ids, mask = pad(rows, self.pad_id, "right", self.device)
        output = self.language_model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        return output.last_hidden_state, mask

    # --- the text encoder, where it is not what learns -------------------------------------------

    def hold_text_encoder(self, other: nn.Module | None = None) -> None:
        """Texts are encoded as they are now, or by another language model, in ``as_text_encoder``,
        however often training begins anew."""
        text_encoder = self._held_text_encoder() if other is None else other
        if isinstance(text_encoder, nn.Module):
            self._text_model, self._text_adapters = text_encoder, None
        else:
            self._text_adapters = self.adapters.freeze() if text_encoder is None else text_encoder

    def _held_text_encoder(self) -> nn.Module | tuple[str, ...] | None:
        """A language model, or the adapters that count in it: what was held, else the reference of
        a model that learns, else None: the model as it is."""
        if self._text_model is not None or self._text_adapters is not None:
            return self._text_model if self._text_adapters is None else self._text_adapters
        if self._frozen_copy is not None:
            return self._frozen_copy[0]
        return self.adapters.before if self.adapters.before != self.adapters.active else None

    def merge_adapters(self) -> None:
        """As every captioner; a text encoder that was held apart gets weights of its own."""
        if self._text_adapters not in (None, self.adapters.active):
            self._text_model = self.adapters.merged(
                self._text_adapters
            ).model.language_model.requires_grad_(False)
        self._text_adapters = None
        super().merge_adapters()

    @contextmanager
    def as_text_encoder(self) -> Iterator[None]:
        """In this context the text encoder that is held answers, or the model as it is."""
        text_encoder = self._held_text_encoder()
        with nullcontext() if text_encoder is None else self._as(text_encoder):
            yield

    def _as(self, text_encoder: nn.Module | tuple[str, ...]) -> AbstractContextManager:
        if isinstance(text_encoder, nn.Module):
            return self.instead(text_encoder)
        return self.adapters.only(text_encoder)

    def save_text_encoder(self, folder: Path) -> str:
        """Write what the encoder's own files lack of it; what ``load_text_encoder`` is to be
        told."""
        text_encoder = self._held_text_encoder()
        if isinstance(text_encoder, nn.Module):
            save_exactly(text_encoder, folder)
            return "whole"
        adapter = self.adapters.read(text_encoder or ())
        if adapter is not None:
            adapter.save(folder / ADAPTER, Path(self.model.name_or_path))
            return ADAPTER
        return "encoder" if text_encoder is None else "base"

    def load_text_encoder(self, folder: Path, kind: str, dtype: torch.dtype | None) -> None:
        """What ``save_text_encoder`` wrote there and answered: ``encoder`` as it is, its ``base``,
        that with an ``adapter`` of its own, or a language model that is ``whole``."""
        self._text_model = self._text_adapters = None
        if kind == "whole":
            model = load_pretrained(self.text_model_class, folder, dtype)
            self._text_model = model.eval().requires_grad_(False)
        elif kind not in ("encoder", "base", ADAPTER):
            raise ValueError(
                f"{folder.parent}: expected text_encoder_weights to be encoder, base, {ADAPTER} "
                f"or whole, got {kind!r}"
            )
        elif kind != "encoder":
            self._text_adapters = self.adapters.lay(
                Lora.load(folder / ADAPTER) if kind == ADAPTER else None
            )
