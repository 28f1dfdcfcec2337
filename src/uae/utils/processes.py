"""One training in several processes of this machine, written by hand: it is as fast as the tiny
models need. Gradients are summed by ``gloo``; outside a group there is one process."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn


def in_processes(number: int, function: Callable, *arguments: Any) -> None:
    """``function(*arguments)`` in ``number`` processes whose ``fit`` calls train one model
    together."""
    if number == 1:
        function(*arguments)
        return
    with tempfile.TemporaryDirectory() as meeting_point:
        spawn(_join, (number, meeting_point, function, arguments), nprocs=number)


def _join(rank: int, number: int, meeting_point: str, function: Callable, arguments: tuple) -> None:
    # SIGINT tells that the parent died; under nohup it would be ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    dist.init_process_group(
        "gloo",
        f"file://{meeting_point}/store",
        timeout=timedelta(hours=1),
        world_size=number,
        rank=rank,
    )
    function(*arguments)
    dist.barrier()
    dist.destroy_process_group()


def process_rank() -> int:
    """The number of this process in its group, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@torch.no_grad()
def sum_over_processes(
    parameters: list[nn.Parameter], metrics: dict[str, float]
) -> dict[str, float]:
    """Gradients, in place, and metrics."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([*(g.flatten() for g in grads), torch.tensor(list(metrics.values()))])
    dist.all_reduce(flat)
    for parameter, part in zip(
        parameters, flat.split([g.numel() for g in grads] + [len(metrics)]), strict=False
    ):
        parameter.grad = part.view_as(parameter)
    return dict(zip(metrics, flat[len(flat) - len(metrics) :].tolist(), strict=True))
