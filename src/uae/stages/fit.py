"""Supervised training, resumable bit for bit: data -> loss -> step, with an average of the weights
kept beside.

Everything random in a step is drawn after seeding with ``(seed, step)``, and a step's data is a
function of its number, so model, optimiser, average and step number are the whole state. Only where
data is streamed does its place in the stream belong to it too.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from uae.utils.checkpoint import check_same_config, load_latest, save_checkpoint
from uae.utils.device import attention_to_train
from uae.utils.metrics import MetricsLogger, TrainProgress
from uae.utils.progress import phase, track
from uae.utils.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, check_ranges
from uae.utils.seed import seed_everything

RANGES = {
    **dict.fromkeys(("num_steps", "batch_size"), AT_LEAST_1),
    **dict.fromkeys(("learning_rate", "max_grad_norm"), ABOVE_0),
    **dict.fromkeys(("warmup_steps", "weight_decay"), AT_LEAST_0),
    "ema_decay": BELOW_1,
}


@dataclass(frozen=True)
class Recipe:
    """How one model is trained; tasks carry theirs as a default."""

    num_steps: int
    """Optimiser steps in all."""
    batch_size: int
    """Samples per micro-batch."""
    learning_rate: float
    """Peak, reached after ``warmup_steps`` and falling to 2 % of itself by a half cosine."""
    num_parallel: int = 1
    """Micro-batches per step, each in a process of its own where ``in_processes`` started as many,
    else in turn, with the same result: at most 2, as the sum of more gradients would depend on
    their order."""
    warmup_steps: int = 200
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Of AdamW, on matrices only."""
    ema_decay: float = 0.999
    """Of the average of the weights, which is what is evaluated and exported."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    seed: int = 0
    """Of data order, noise and initial weights."""

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        if self.num_parallel not in (1, 2):
            raise ValueError(f"num_parallel must be 1 or 2, got {self.num_parallel}")


@runtime_checkable
class Task(Protocol):
    """What is trained: modules, a loss for each step, a measurement, and a way to save the result.

    A task that reads a stream keeps it as ``data``, with ``state_dict`` and ``load_state_dict``;
    checkpoints hold it.
    """

    name: str
    recipe: Recipe
    modules: dict[str, nn.Module]

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of the ``step``-th micro-batch, and values to log, always the same ones. Where
        ``num_parallel`` is 2 its draws must come from generators keyed by ``step``, not from the
        global ones."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Measurements on validation data, with the averaged weights in place."""
        ...

    def export(self, folder: Path) -> None:
        """Save the modules as they are now, as ``from_pretrained`` loads them."""
        ...

    def after_step(self, step: int) -> None:
        """Anything that follows an update, e.g. a teacher's average."""
        ...


def fit(
    task: Task, run_dir: Path, *, save_every: int = 250, eval_every: int = 1000
) -> dict[str, float]:
    """Train ``task`` in ``run_dir`` from its last checkpoint (or the start) to the end; the last
    measurements, empty where the run was finished before.

    Raises:
        ValueError: when ``run_dir`` was begun with another recipe.
    """
    recipe, parameters, is_first = task.recipe, _named_parameters(task.modules), _rank() == 0
    optimizer = _optimizer(parameters, recipe)
    optimizer.zero_grad(set_to_none=True)  # of a step that failed in this process
    average = {name: p.detach().clone() for name, p in parameters.items()}
    start = _resume(task, run_dir, optimizer, average)
    if not is_first:
        for step in range(start, recipe.num_steps):
            _train_step(task, step, optimizer, parameters, average)
        return {}
    logger = MetricsLogger(run_dir, last_step=start - 1)
    results: dict[str, float] = {}
    with TrainProgress(task.name, recipe.num_steps, start) as progress:
        for step in range(start, recipe.num_steps):
            began = time.monotonic()
            metrics = _train_step(task, step, optimizer, parameters, average)
            metrics["time/step_sec"] = time.monotonic() - began
            done = step + 1
            is_measured = done % eval_every == 0 or done == recipe.num_steps
            if is_measured:
                with swapped(parameters, average), phase("measuring"):
                    results = task.evaluate()
                    task.export(run_dir / "export")
                metrics |= {f"eval/{name}": value for name, value in results.items()}
                shown = "  ".join(f"{name} {value:.4f}" for name, value in results.items())
                print(f"{task.name} step {done}: {shown}", flush=True)
            if done % 20 == 0 or is_measured:
                logger.log(step, metrics)
            if done % save_every == 0 or done == recipe.num_steps:
                logger.sync()
                _save(task, run_dir, done, optimizer, average)
            progress.update(done, loss=metrics["loss"])
    logger.close()
    return results


def in_processes(number: int, function: Callable, *arguments: Any) -> None:
    """``function(*arguments)`` in ``number`` processes whose ``fit`` calls train one model
    together."""
    if number == 1:
        function(*arguments)
        return
    with tempfile.TemporaryDirectory() as meeting_point:
        spawn(_join, (number, meeting_point, function, arguments), nprocs=number)


def _join(rank: int, number: int, meeting_point: str, function: Callable, arguments: tuple) -> None:
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # it tells that the parent died; nohup had it ignored
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


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _train_step(
    task: Task, step: int, optimizer: torch.optim.Optimizer, parameters: dict, average: dict
) -> dict:
    recipe = task.recipe
    seed_everything(recipe.seed * 1_000_003 + step)
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * learning_rate_factor(step, recipe)
    metrics = _accumulate(task, step, list(parameters.values()))
    norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), recipe.max_grad_norm)
    if not torch.isfinite(norm):
        raise ValueError(
            f"{task.name}: the gradient of step {step} is not finite (loss {metrics['loss']})"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    decay = min(recipe.ema_decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in average.items():
            value.lerp_(parameters[name], 1 - decay)
    task.after_step(step)
    return {**metrics, "grad_norm": norm.item()}


def _accumulate(task: Task, step: int, parameters: list[nn.Parameter]) -> dict[str, float]:
    """Gradients of the step's mean loss; mean metrics."""
    num, processes = task.recipe.num_parallel, dist.get_world_size() if dist.is_initialized() else 1
    if num % processes:
        raise ValueError(f"expected 1 or {num} processes for {task.name}, got {processes}")
    total: dict[str, float] = {}
    with attention_to_train(parameters[0].device):
        for part in track(range(_rank(), num, processes), "updating", "micro-batches"):
            loss, metrics = task.loss(step * num + part)
            (loss / num).backward()
            for name, value in {"loss": loss.item(), **metrics}.items():
                total[name] = total.get(name, 0.0) + value / num
    return _sum_over_processes(parameters, total) if processes > 1 else total


@torch.no_grad()
def _sum_over_processes(
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


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a half cosine to 2 % of the peak."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.num_steps - recipe.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))


@contextmanager
def swapped(parameters: dict[str, nn.Parameter], average: dict[str, Tensor]) -> Iterator[None]:
    """The averaged weights in the modules' place, for as long as the context lasts."""
    current = {name: p.detach().clone() for name, p in parameters.items()}
    _assign(parameters, average)
    try:
        yield
    finally:
        _assign(parameters, current)


@torch.no_grad()
def _assign(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def _named_parameters(modules: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {
        f"{m}.{n}": p
        for m, module in modules.items()
        for n, p in module.named_parameters()
        if p.requires_grad
    }


def _optimizer(parameters: dict[str, nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    rest = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True)


def _save(
    task: Task, run_dir: Path, step: int, optimizer: torch.optim.Optimizer, average: dict
) -> None:
    weights = {name: module.state_dict() for name, module in task.modules.items()}
    state = {"optimizer": optimizer.state_dict(), "average": average, "recipe": asdict(task.recipe)}
    if (data := getattr(task, "data", None)) is not None:
        state["data"] = data.state_dict()
    save_checkpoint(run_dir / "checkpoints", step, weights, state)


def _resume(task: Task, run_dir: Path, optimizer: torch.optim.Optimizer, average: dict) -> int:
    checkpoint = load_latest(run_dir / "checkpoints")
    if checkpoint is None:
        return 0
    check_same_config(checkpoint.state["recipe"], asdict(task.recipe))
    for name, module in task.modules.items():
        module.load_state_dict(checkpoint.weights[name])
    optimizer.load_state_dict(checkpoint.state["optimizer"])
    for name, value in checkpoint.state["average"].items():
        average[name].copy_(value)
    if (data := getattr(task, "data", None)) is not None:
        data.load_state_dict(checkpoint.state["data"])
    print(f"{task.name}: resumed from step {checkpoint.step}", flush=True)
    return checkpoint.step
