"""Several processes that work as one, started by ``torchrun`` or ``accelerate launch``.

Each holds the whole model and takes its share of every step. What they have to tell each other is
moved by ``torch.distributed``: gradients, rewards and numbers. Their folder is written by the main
process alone. In a command of one process all of this does nothing.

A process that fails says why in the group's store, and those that wait for it in vain look there.
One that was killed says nothing: it is the one that does not answer.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Value = TypeVar("Value")
TIMEOUT = timedelta(hours=2)  # that others may measure or save for; an outage is seen at once
SECONDS_TO_ANSWER = 5.0
FAILED, ALIVE = "uae/failed", "uae/alive"  # in the store
BUCKET = 2**25  # gradients that are sent at once


class Outage(NamedTuple):
    """Why the group cannot go on."""

    message: str
    """Which process failed or died, and why if it said."""
    speaker: int
    """The process that shall tell the user."""


class PeerLost(RuntimeError):
    """Another process of the group failed or died."""

    def __init__(self, outage: Outage) -> None:
        super().__init__(outage.message)
        self.speaker = outage.speaker


# --- the group -----------------------------------------------------------------------------------


def join() -> None:
    """Meet the others, and take the GPU that the launcher meant for this process."""
    from accelerate import PartialState

    # either kind of tensor may be sent: small models stay on the CPU beside a GPU
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    PartialState(cpu=not torch.cuda.is_available())


def in_processes(number: int, function: Callable[..., None], *arguments: Any) -> None:
    """``function(*arguments)`` in so many processes of this machine, started as ``torchrun``
    does."""
    if number == 1:
        function(*arguments)
        return
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        1, 1, number, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    elastic_launch(config, _as_one_of_several)(function, arguments)


def _as_one_of_several(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    join()
    with speaking_once():
        function(*arguments)
    wait()
    dist.destroy_process_group()


@contextmanager
def speaking_once() -> Iterator[None]:
    """The main process alone prints and warns."""
    if is_main():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def leave() -> NoReturn:
    """Part, all together, and end this process.

    At once: now and then a thread of the group outlives it as the interpreter ends, which aborts a
    process that has done all its work.
    """
    wait()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def process_rank() -> int:
    """The number of this process in its group, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes, logs and reports for all."""
    return process_rank() == 0


def own_share(num: int) -> range:
    """Which of ``num`` items this process takes: neighbours, as many as the others or one more."""
    rank, size = process_rank(), num_processes()
    return range(rank * num // size, (rank + 1) * num // size)


def slice_of(places: range) -> slice:
    """Those places of a sequence."""
    return slice(places.start, places.stop)


# --- what is told --------------------------------------------------------------------------------


def gather(value: Value) -> list[Value]:
    """What each process has, in their order; it must be picklable."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    with noticing_outages():
        dist.all_gather_object(values, value)
    return values


def of_main(value: Value) -> Value:
    """What the main process has."""
    return gather(value)[0]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, on the device of one's own."""
    if num_processes() == 1:
        return rows
    return torch.cat(gather(rows.detach().cpu())).to(rows.device)


def wait() -> None:
    """Until all have come so far."""
    gather(None)


@contextmanager
def main_first() -> Iterator[None]:
    """What is done in this context is done by the main process, and then by the others."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def add_up(numbers: Mapping[str, int | float]) -> dict[str, float]:
    """The sums over processes, which all name the same."""
    each = gather(dict(numbers))
    return {name: float(sum(values[name] for values in each)) for name in numbers}


def mean_over_processes(numbers: Mapping[str, float], weight: int) -> dict[str, float]:
    """Means of all, from those of each process and how many they are of."""
    each = gather((dict(numbers), weight))
    if len(each) == 1:
        return dict(numbers)
    total = sum(weight for _, weight in each)
    return {name: sum(own[name] * weight for own, weight in each) / total for name in numbers}


@torch.no_grad()
def add_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum gradients over processes, in place. One that a process has none of counts as 0 there."""
    if num_processes() == 1:
        return
    wanted = gradients_somewhere(parameters)
    with noticing_outages():
        for bucket in _buckets(wanted):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat)
            parts = flat.split([grad.numel() for grad in grads])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter)


def gradients_somewhere(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Those of which at least one process has a gradient."""
    if not parameters:
        return []
    is_there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    with noticing_outages():
        dist.all_reduce(is_there, dist.ReduceOp.MAX)
    return [p for p, there in zip(parameters, is_there.tolist(), strict=True) if there]


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Of one dtype and device each, and of bounded size."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        is_alike = bucket and (bucket[0].dtype, bucket[0].device) == (
            parameter.dtype,
            parameter.device,
        )
        if bucket and (not is_alike or sum(p.numel() for p in bucket) >= BUCKET):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


# --- what goes wrong -----------------------------------------------------------------------------


def tell_failure(message: str) -> None:
    """Leave word for the others of why this process ends; the first to fail is heard."""
    if dist.is_initialized() and num_processes() > 1:
        try:
            _store().compare_set(FAILED, "", f"{process_rank()}:{message}")
        except RuntimeError:  # the store is gone with the process that kept it
            return


def find_outage() -> Outage | None:
    """By what the others said or did not say; None if all are there."""
    own, size = process_rank(), num_processes()
    if size == 1:
        return None
    try:
        store = _store()
        store.set(f"{ALIVE}/{own}", "")
        deadline = time.monotonic() + SECONDS_TO_ANSWER
        while time.monotonic() < deadline:
            if store.check([FAILED]):
                rank, message = store.get(FAILED).decode().split(":", 1)
                return Outage(f"process {rank} of {size} failed: {message}", 0)
            time.sleep(0.1)
        there = [rank for rank in range(size) if store.check([f"{ALIVE}/{rank}"])]
    except RuntimeError:  # the main process kept the store
        there = list(range(1, size))
    missing = ", ".join(str(rank) for rank in range(size) if rank not in there)
    died = f"process {missing} of {size} died: it was killed, or its machine was lost"
    return Outage(died, there[0]) if missing else None


@contextmanager
def noticing_outages() -> Iterator[None]:
    """A ``PeerLost`` where the group's own error only says that a connection closed."""
    try:
        yield
    except RuntimeError as error:
        unknown = Outage(f"the processes cannot reach each other: {error}", 0)
        raise PeerLost(find_outage() or unknown) from error


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
