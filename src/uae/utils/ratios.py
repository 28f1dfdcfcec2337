"""Log-ratios of probabilities, bounded: ``exp`` of an fp32 number above 88 is infinity."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

MAX_LOG_RATIO = 20.0  # nats; exp overflows at 88
# a larger k3 is only found where the log-ratio was bounded
ALMOST_LARGEST_K3 = 0.99 * math.exp(MAX_LOG_RATIO)


def bounded(log_ratio: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Safe to take ``exp`` of: what is above ``MAX_LOG_RATIO`` counts as that, and has no
    gradient."""
    return log_ratio.clamp(max=MAX_LOG_RATIO)
