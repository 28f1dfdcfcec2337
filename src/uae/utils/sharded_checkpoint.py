"""Checkpoints of a model that is spread over processes: of weights, averages and moments each
process writes what it keeps. They hold what others hold, and either kind of run resumes both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uae.utils.checkpoint import MOMENTS, Checkpoint, save_checkpoint, unfinished_parts
from uae.utils.processes import is_main, wait
from uae.utils.sharded_files import write_parts
from uae.utils.sharding import Shards

Weights = Mapping[str, Mapping[str, Tensor]]


def labelled(
    weights: Weights,
    state: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    shards: Shards,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What a checkpoint holds of this process, each tensor marked as the part that it is; moments
    move from the optimiser's state to the weights."""
    parts = {
        module: {
            name: tensor
            if (own := _own(parameters, module, name)) is None
            else shards.labelled(own, tensor)
            for name, tensor in tensors.items()
        }
        for module, tensors in weights.items()
    }
    moments: dict[str, Tensor] = {}
    rest: dict[int, dict[str, Any]] = {}
    changed = _changed_by(optimizer)
    for number, values in state["optimizer"]["state"].items():
        rest[number] = {}
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim:
                moments[f"{number}.{name}"] = shards.labelled(changed[number], value)
            else:
                rest[number][name] = value
    emptied = {**state, "optimizer": {**state["optimizer"], "state": rest}}
    return parts | {MOMENTS: moments}, emptied


def save_together(
    directory: Path,
    step: int,
    weights: Weights,
    state: Mapping[str, Any],
    keep_last: int,
) -> None:
    """As ``save_checkpoint``, by all processes; the main one completes it."""
    tensors = {f"{module}/{name}": t for module, of in weights.items() for name, t in of.items()}

    def write(folder: Path) -> None:
        wait()  # for the folder
        write_parts(folder, tensors)

    if is_main():
        save_checkpoint(directory, step, {}, state, keep_last, write)
    else:
        write(unfinished_parts(directory, step))


def cut_to_rows(
    checkpoint: Checkpoint,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    shards: Shards,
) -> None:
    """Keep of a checkpoint, read whole, what this process keeps of the model."""
    for module, tensors in checkpoint.weights.items():
        for name, tensor in tensors.items():
            if (own := _own(parameters, module, name)) is not None:
                tensors[name] = shards.cut(own, tensor)
    changed = _changed_by(optimizer)
    for number, values in checkpoint.state["optimizer"]["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim:
                values[name] = shards.cut(changed[number], value)


def _own(parameters: Mapping[str, nn.Parameter], module: str, name: str) -> nn.Parameter | None:
    """That a checkpoint's tensor is of, if it is of one that changes."""
    return parameters.get(name, parameters.get(f"{module}.{name}"))


def _changed_by(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """By the numbers of its state."""
    return [p for group in optimizer.param_groups for p in group["params"]]
