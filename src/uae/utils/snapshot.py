"""What a step changes, as it was before the step: kept in the CPU's memory, put back when the step
fails.

That is three numbers for each weight that is trained (the weight and AdamW's two moments), four
with an average: with LoRA a few hundred MB, in full training of 3B parameters 36 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from uae.utils.checkpoint import capture_rng, restore_rng


class Snapshot:
    """Copies of some tensors, of an optimiser's state, and of the global generators."""

    def __init__(self, tensors: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        self._tensors, self._optimizer = list(tensors), optimizer
        self._copies: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # by the tensor's identity: tensor, copy
        self._rng: dict[str, Any] = {}

    @torch.no_grad()
    def take(self) -> None:
        """Copy all as it is now; memory is taken the first time."""
        moments = [value for state in self._optimizer.state.values() for value in state.values()]
        live = {
            id(tensor): tensor
            for tensor in (*self._tensors, *moments)
            if isinstance(tensor, Tensor)
        }
        kept = {key: copies for key, copies in self._copies.items() if key in live}
        for key, tensor in live.items():
            if key in kept:
                kept[key][1].copy_(tensor)
            else:
                kept[key] = tensor, tensor.detach().to("cpu", copy=True)
        self._copies, self._rng = kept, capture_rng()

    @torch.no_grad()
    def put_back(self) -> None:
        """All as it was at the last ``take``; gradients are dropped."""
        for tensor, copy in self._copies.values():
            tensor.copy_(copy)
        for parameter, state in list(self._optimizer.state.items()):
            if any(
                isinstance(value, Tensor) and id(value) not in self._copies
                for value in state.values()
            ):
                del self._optimizer.state[parameter]  # its first update made it
        self._optimizer.zero_grad(set_to_none=True)
        restore_rng(self._rng)
