"""Where and in what precision a model computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def autocast(device: torch.device, use_bf16: bool) -> Iterator[None]:
    """bf16 where that is safe; on a CPU plain attention, whose backward takes half of the flash kernel's time there."""
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16):
        if device.type != "cpu":
            yield
            return
        with sdpa_kernel(SDPBackend.MATH):
            yield
