"""A key-value cache with room for all that will be sampled: tokens are written in place, nothing is
copied again."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class ReservedLayer(DynamicLayer):
    """A layer whose keys and values, ``[B, H, L, D]``, are views into larger buffers. Without
    gradients."""

    def __init__(self, filled: DynamicLayer, num_tokens: int) -> None:
        super().__init__()
        self.lazy_initialization(filled.keys, filled.values)  # type: ignore[arg-type]
        self._length = filled.get_seq_length()
        self._buffers = [_with_room(states, num_tokens) for states in (filled.keys, filled.values)]
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write after what is there; all keys and values until now."""
        end = self._length + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., self._length : end, :] = states
        self._length = end
        self._show()
        return self.keys, self.values  # type: ignore[return-value]

    def _show(self) -> None:
        self.keys, self.values = (buffer[..., : self._length, :] for buffer in self._buffers)


def repeat_rows(cache: DynamicCache, row: Int[Tensor, " b"]) -> None:
    """These rows of every layer, as often as they are named.

    Unlike the library's indexing, its gradient adds up in one order, so that threads give the same
    bits every time.
    """
    layer: Any
    for layer in cache.layers:
        row = row.to(layer.keys.device)
        keys, values = (states.index_select(0, row) for states in (layer.keys, layer.values))
        layer.keys, layer.values = keys, values


def reserve(cache: DynamicCache, num_tokens: int) -> None:
    """Make room for ``num_tokens`` more in every full-attention layer of a filled cache."""
    cache.layers = [
        ReservedLayer(layer, num_tokens) if type(layer) is DynamicLayer else layer
        for layer in cache.layers
    ]


def _with_room(states: Tensor | None, num_tokens: int) -> Tensor:
    assert states is not None
    batch, heads, length, width = states.shape
    buffer = torch.empty(
        batch, heads, length + num_tokens, width, dtype=states.dtype, device=states.device
    )
    buffer[:, :, :length] = states
    return buffer
