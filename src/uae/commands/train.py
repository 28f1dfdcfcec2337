"""``uae train``: a recipe, on the embedded world or on a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, make_dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from uae import catalog
from uae.commands.group import choose_run
from uae.commands.recipes import find_recipe
from uae.models.footprint import print_footprint
from uae.report.stages_page import report_stages
from uae.stages.base import Assignment
from uae.stages.grpo_settings import RunConfig, step_shape
from uae.stages.pipeline import PipelineSettings, run_pipeline
from uae.stages.recipes import ALONE, Recipe
from uae.utils.lock import locked
from uae.utils.outputs import check_out_folder
from uae.utils.processes import is_main
from uae.utils.quiet import quiet_libraries


def main(arguments: list[str]) -> None:
    """``uae train [NAME] [--run-dir DIR] [OPTIONS]``; the same command resumes. Started by
    ``torchrun`` or ``accelerate launch``, several processes train together."""
    quiet_libraries()
    name, options = choose_run(arguments)
    recipe = find_recipe(name)
    run = _run_alone if ALONE in recipe.stages else _run_stages
    run(name, recipe, options)


def _run_alone(name: str, recipe: Recipe, options: Sequence[str]) -> None:
    """One stage, in the run's own folder; its settings are the options."""
    args = tyro.cli(
        RunConfig,
        default=RunConfig.of(recipe.stage.settings, recipe.model),
        args=options,
        prog=f"uae train {name}",
        description=catalog.RECIPES[name],
    )
    if args.dry_run:
        print_footprint(step_shape(args.model, args))
        return
    check_out_folder(args.run_dir)
    stage: Any = replace(recipe.stage, settings=args.stage_settings())  # type: ignore[type-var]
    stage.check()
    with locked(args.run_dir):
        stage.run(Assignment(args.model, args.run_dir, args.model, args.self_contained))
    print(f"trained model: {args.run_dir / 'model'}   log: {args.run_dir / 'metrics.jsonl'}")


def _run_stages(name: str, recipe: Recipe, options: Sequence[str]) -> None:
    """Stage after stage; each setting of each stage is an option."""
    listing = "\n".join(f"  {number}. {stage}" for number, stage in enumerate(recipe.stages, 1))
    options_of_stages = [
        (name, type(stage.settings), field(default=stage.settings))
        for name, stage in recipe.stages.items()
    ]
    with_stages = make_dataclass(
        "PipelineSettings", options_of_stages, bases=(PipelineSettings,), frozen=True
    )
    args: Any = tyro.cli(
        with_stages,
        default=with_stages(run_dir=Path("runs") / name),
        args=options,
        prog=f"uae train {name}",
        description=f"{catalog.RECIPES[name]}\n\n{listing}",
    )
    stages: dict[str, Any] = {
        name: replace(stage, settings=getattr(args, name))  # type: ignore[type-var]
        for name, stage in recipe.stages.items()
    }
    records = run_pipeline(replace(recipe, stages=stages), args)
    if recipe.measure is not None and is_main():
        Console().print(report_stages(f"uae train {name}", records, args.run_dir))
        pages = f"{args.run_dir / 'report.html'}   numbers: {args.run_dir / 'stages.json'}"
        print(f"report: {pages}")
    print(f"models: {args.run_dir}/*/model")
