"""What every training loop needs beside its loss: the learning rate of a step, an update that is
clipped, and an average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Decay = Literal["constant", "linear", "cosine"]
LOWEST = 0.02  # share of the peak at which a cosine ends


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step, as a share of its peak."""

    num_steps: int
    """Steps in all."""
    warmup_steps: int
    """Steps of linear warm-up."""
    decay: Decay
    """What follows: the same rate; a line that reaches 0 after the last step, from the first one
    on; or half a cosine down to 2 %."""

    def factor(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        match self.decay:
            case "constant":
                return warmup
            case "linear":
                return warmup * max(0.0, 1 - step / self.num_steps)
            case "cosine" if step < self.warmup_steps:
                return warmup
            case "cosine":
                num_falling = max(1, self.num_steps - self.warmup_steps)
                angle = torch.tensor((step - self.warmup_steps) / num_falling * torch.pi)
                return LOWEST + (1 - LOWEST) * 0.5 * (1 + float(torch.cos(angle)))


class Average:
    """Of weights, over their updates.

    Its first updates, n from 0, have a decay of at most (1 + n) / (10 + n): what was before the run
    is soon forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = {name: p.detach().clone() for name, p in parameters.items()}

    def update(self, number: int) -> None:
        """The ``number``-th update, from 0: the weights as they are now."""
        for name, value in self.values.items():
            value.lerp_(self.parameters[name].detach(), 1 - self.decay_at(number))

    def updated(self, number: int) -> dict[str, Tensor]:
        """What it would be after that update."""
        return {
            name: value.lerp(self.parameters[name].detach(), 1 - self.decay_at(number))
            for name, value in self.values.items()
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        for name, value in self.values.items():
            value.copy_(saved[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averaged weights stand in the parameters' place as long as the context lasts.

        Parameters only point to other memory, and autocast keeps no casts of it: passes that
        gradients go through may begin before and end after.
        """
        keeps_casts = torch.is_autocast_cache_enabled()
        current = {name: p.data for name, p in self.parameters.items()}
        torch.set_autocast_cache_enabled(False)
        try:
            for name, parameter in self.parameters.items():
                parameter.data = self.values[name]
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = current[name]
            torch.set_autocast_cache_enabled(keeps_casts)

    def decay_at(self, number: int) -> float:
        """Of that update."""
        return min(self.decay, (1 + number) / (10 + number))


class FastAverage(Average):
    """Of weights, close behind them: its ``number``-th update has a decay of ``number`` times
    ``rate``, at most ``largest_decay``."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], rate: float, largest_decay: float
    ) -> None:
        super().__init__(parameters, largest_decay)
        self.rate = rate

    def decay_at(self, number: int) -> float:
        return min(self.decay, self.rate * number)


@torch.no_grad()
def assign(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters of their names."""
    for name, value in values.items():
        parameters[name].copy_(value)


def clipped_update(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    max_grad_norm: float,
    advice: str,
    clip: Callable[[Sequence[nn.Parameter], float], Tensor] = nn.utils.clip_grad_norm_,
) -> float:
    """Clip the gradients to a norm, update, and drop them; the norm before clipping.

    Raises:
        ValueError: the gradient is not finite; ``advice`` ends its message. Nothing was updated.
    """
    norm = clip(parameters, max_grad_norm)
    if not torch.isfinite(norm):
        raise ValueError(
            f"expected a finite gradient, got norm {norm.item()}; nothing was updated. {advice}"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.item()
