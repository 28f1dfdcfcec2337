"""Supervised training, resumable bit for bit: data -> loss -> step, with an average of the weights
kept beside.

Everything random in a step is drawn after seeding with ``(seed, step)``, and a step's data is a
function of its number, so model, optimiser, average and step number are the whole state
(``utils/run.py``). Only where data is streamed does its place in the stream belong to it too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from uae.utils.checkpoint import Checkpoint
from uae.utils.device import attention_to_train
from uae.utils.metrics import TrainProgress
from uae.utils.optim import Average, Schedule, assign, clipped_update
from uae.utils.processes import add_up, is_main, num_processes, own_share
from uae.utils.progress import phase, track
from uae.utils.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, check_ranges
from uae.utils.run import Run
from uae.utils.seed import seed_everything
from uae.utils.sharding import WHOLE

LOG_EVERY = 20  # steps; measured ones are logged as well
AVERAGE = "average"  # in a checkpoint, beside the modules
RANGES = {
    **dict.fromkeys(("num_steps", "batch_size"), AT_LEAST_1),
    **dict.fromkeys(("learning_rate", "max_grad_norm"), ABOVE_0),
    **dict.fromkeys(("warmup_steps", "weight_decay"), AT_LEAST_0),
    "ema_decay": BELOW_1,
}


@dataclass(frozen=True)
class FitSettings:
    """How one model is trained; tasks carry theirs as a default."""

    num_steps: int
    """Optimiser steps in all."""
    batch_size: int
    """Samples per micro-batch."""
    learning_rate: float
    """Peak, reached after ``warmup_steps`` and falling to 2 % of itself by a half cosine."""
    num_parallel: int = 1
    """Micro-batches per step, each in a process of its own where there are as many, else in turn,
    with the same result: at most 2, as the sum of more gradients would depend on their order."""
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
class Fittable(Protocol):
    """What is trained: modules, a loss for each step, a measurement, and a way to save the result.

    A task that reads a stream keeps it as ``data``, with ``state_dict`` and ``load_state_dict``;
    checkpoints hold it. One whose network is spread over processes has ``shards``; its modules then
    hold rows.
    """

    name: str
    fit_settings: FitSettings
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


@runtime_checkable
class Divisible(Protocol):
    """A task whose batches several processes share; their losses are means over samples."""

    def loss_of(self, step: int, places: range) -> tuple[Tensor, dict[str, float]]:
        """As ``loss``, of the samples of these places in the step's batch."""
        ...


def fit(
    task: Fittable,
    run_dir: Path,
    *,
    save_every: int = 250,
    eval_every: int = 1000,
    keep_checkpoints: int = 2,
) -> dict[str, float]:
    """Train ``task`` in ``run_dir`` from its last checkpoint (or the start) to the end; the last
    measurements, empty where the run was finished before.

    Raises:
        ValueError: when ``run_dir`` was begun with other settings, or is in use.
    """
    check_processes(task)
    run, num_steps = TaskRun(task, run_dir, save_every), task.fit_settings.num_steps
    run.keep_checkpoints = keep_checkpoints
    results: dict[str, float] = {}
    with run.opened(), TrainProgress(task.name, num_steps, run.step) as progress:
        for step in range(run.step, num_steps):
            with run.whole_step():
                began = time.monotonic()
                metrics = fit_step(run, step)
                metrics["time/step_sec"] = time.monotonic() - began
                is_measured = (step + 1) % eval_every == 0 or step + 1 == num_steps
                if is_measured:
                    results = _measure(run, step + 1)
                    metrics |= {f"eval/{name}": value for name, value in results.items()}
                is_logged = is_measured or (step + 1) % LOG_EVERY == 0
                run.finish_step(metrics if is_logged else None)
            run.save_if_due()
            progress.update(step + 1, loss=metrics["loss"])
    return results


def num_shared(task: Fittable) -> int:
    """What processes share of a step: its samples, or else its micro-batches."""
    settings = task.fit_settings
    return settings.batch_size if isinstance(task, Divisible) else settings.num_parallel


def check_processes(task: Fittable) -> None:
    """A ValueError where a process would have nothing of a step."""
    if num_shared(task) < num_processes():
        raise ValueError(
            f"{task.name}: expected at most {num_shared(task)} processes, got {num_processes()}: "
            "a step has no more to share"
        )


class TaskRun(Run):
    """A task in training. Its model may be large and its data a stream, so a step that fails is not
    taken back: the run goes on from the last checkpoint."""

    settings_key = "recipe"

    def __init__(self, task: Fittable, folder: Path, save_every: int) -> None:
        settings = task.fit_settings
        parameters = {
            f"{module_name}.{name}": p
            for module_name, module in task.modules.items()
            for name, p in module.named_parameters()
            if p.requires_grad
        }
        super().__init__(
            folder,
            parameters,
            _optimizer(parameters, settings),
            Schedule(settings.num_steps, settings.warmup_steps, "cosine"),
            Average(parameters, settings.ema_decay),
            shards=getattr(task, "shards", WHOLE),
        )
        self.task, self.settings, self.save_every = task, asdict(settings), save_every

    def contents(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        weights: dict[str, Mapping[str, Tensor]] = {
            name: module.state_dict() for name, module in self.task.modules.items()
        }
        weights[AVERAGE] = self.average.values
        state = {"optimizer": self.optimizer.state_dict(), "recipe": self.settings}
        if (data := getattr(self.task, "data", None)) is not None:
            state["data"] = data.state_dict()
        return weights, state

    def restore(self, checkpoint: Checkpoint) -> None:
        for name, module in self.task.modules.items():
            module.load_state_dict(checkpoint.weights[name])
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])
        # runs that were begun before 2026-11-26 have it in their state
        self.average.restore(checkpoint.weights.get(AVERAGE) or checkpoint.state[AVERAGE])
        if (data := getattr(self.task, "data", None)) is not None:
            data.load_state_dict(checkpoint.state["data"])
        print(f"{self.task.name}: resumed from step {checkpoint.step}", flush=True)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights stand in the model as long as the context lasts, whole."""
        if not self.shards:
            with self.average.in_place():
                yield
            return
        current = {name: p.detach().clone() for name, p in self.parameters.items()}
        assign(self.parameters, self.average.values)
        try:
            with self.shards.whole():
                yield
        finally:
            assign(self.parameters, current)


def fit_step(run: TaskRun, step: int) -> dict[str, float]:
    """One update of the weights and of their average; the metrics of the step."""
    task, settings, parameters = run.task, run.task.fit_settings, list(run.parameters.values())
    seed_everything(settings.seed * 1_000_003 + step)
    with attention_to_train(parameters[0].device), run.shards.whole():
        metrics = _backward(task, step)
    run.shards.add_gradients(parameters)
    metrics["grad_norm"] = clipped_update(
        run.optimizer,
        parameters,
        settings.max_grad_norm,
        f"It was step {step} of {task.name}, of loss {metrics['loss']}; begin another run with a "
        "lower learning rate",
        run.shards.clip,
    )
    run.average.update(step)
    task.after_step(step)
    return metrics


def _backward(task: Fittable, step: int) -> dict[str, float]:
    """This process's part of the gradient of the step's mean loss; mean metrics of all."""
    total: dict[str, float] = {}
    for weight, (loss, metrics) in _losses(task, step):
        (weight * loss).backward()
        for name, value in {"loss": loss.item(), **metrics}.items():
            total[name] = total.get(name, 0.0) + weight * value
    return add_up(total)


def _losses(task: Fittable, step: int) -> Iterator[tuple[float, tuple[Tensor, dict[str, float]]]]:
    """Of this process's share of the step, with the weight of each in the step's mean."""
    num = num_shared(task)
    places = own_share(num)
    if isinstance(task, Divisible):
        yield len(places) / num, task.loss_of(step, places)
        return
    for part in track(places, "updating", "micro-batches"):
        yield 1 / num, task.loss(step * num + part)


def _measure(run: TaskRun, num_done: int) -> dict[str, float]:
    """The averaged weights, measured and exported by the main process."""
    with run.averaged():
        if not is_main():
            return {}
        with phase("measuring"):
            results = run.task.evaluate()
            run.task.export(run.folder / "export")
    shown = "  ".join(f"{name} {value:.4f}" for name, value in results.items())
    print(f"{run.task.name} step {num_done}: {shown}", flush=True)
    return results


def _optimizer(parameters: dict[str, nn.Parameter], settings: FitSettings) -> torch.optim.Optimizer:
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    others = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)
