"""Where and in what precision a model computes."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext

import psutil
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def autocast(device: torch.device, use_bf16: bool) -> AbstractContextManager:
    """bf16 where that is safe."""
    return torch.autocast(device.type, torch.bfloat16, enabled=use_bf16)


def attention_to_train(device: torch.device) -> AbstractContextManager:
    """On a CPU plain attention: its backward in bf16 takes half of the flash kernel's time, though
    its forward more."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(option: str, name: str) -> None:
    """A ValueError unless this machine has the device."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{option}: expected a device of this machine, such as cpu or cuda:1, got {name}"
        ) from error


def can_compile() -> bool:
    """Whether ``torch.compile`` finds what it needs on a CPU."""
    return bool(shutil.which("g++") or shutil.which("clang++"))


def free_memory(device: str | torch.device) -> int:
    """Bytes that are left where tensors of this device lie."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
