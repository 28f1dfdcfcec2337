"""``uae export MODEL OUT``: one model without adapters, in one dtype, and how much of what was
learnt survives that."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from uae.models.export import Survival, export
from uae.utils.outputs import check_out_folder
from uae.utils.quiet import quiet_libraries

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WANTED = 0.99  # of the update


@dataclass(frozen=True)
class Arguments:
    """Merge a trained model's adapters into its weights, as plain `transformers` and `diffusers`
    folders."""

    model: Annotated[str, tyro.conf.Positional]
    """A folder that uae wrote, or anything else that --model takes."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder for the merged model."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Of its weights. bf16 loses updates below half a percent of a weight: look at what
    survives."""


def main(arguments: list[str]) -> None:
    """``uae export MODEL OUT [--dtype bf16]``"""
    quiet_libraries()
    args = tyro.cli(Arguments, args=arguments, prog="uae export")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(
            f"expected a new folder to export to, {args.out} is not empty; name another"
        )
    check_out_folder(args.out)
    survival = export(args.model, args.out, DTYPES[args.dtype])
    if survival is None:
        print(f"{args.model} names no base: how much of what was learnt survives is not known")
    else:
        show(survival, args.dtype)
    print(f"model: {args.out}")


def show(parts: dict[str, Survival], dtype: str) -> None:
    """A row for each part that learnt, and a warning where too little is left."""
    table = Table("part", "weights moved", f"of the update in {dtype}", title="What survives")
    for part, survival in parts.items():
        table.add_row(part, f"{survival.num_moved:,}", f"{100 * survival.share:.1f} %")
    Console().print(table)
    worst: Any = min((survival.share for survival in parts.values()), default=1.0)
    if worst < WANTED:
        print(
            (
                f"warning: {dtype} keeps {100 * worst:.1f} % of what was learnt, wanted "
                f"{100 * WANTED:.0f} %: its steps are larger than most of the update. Take --dtype "
                "fp32, or the model as it is, adapters on their base"
            ),
            file=sys.stderr,
        )
