"""Round trips to look at."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Sample(NamedTuple):
    """One round trip; images ``[3, h, w]`` in [0, 1]."""

    source: Tensor
    caption: str
    reconstruction: Tensor


class Frame(NamedTuple):
    """One image's caption and reconstruction ``[3, h, w]`` after so many steps of training."""

    step: int
    caption: str
    reconstruction: Tensor
