"""``uae train``: Unified-GRPO on the embedded world or on a folder of images."""

from __future__ import annotations

import os

import tyro

from uae.commands.group import choose_run
from uae.models.footprint import print_footprint
from uae.pipelines import PIPELINES
from uae.presets import PRESETS, RunConfig
from uae.stages.unified_grpo import step_shape, train_model
from uae.utils.files import appear
from uae.utils.outputs import check_out_folder
from uae.utils.quiet import quiet_libraries


def main(arguments: list[str]) -> None:
    """``uae train [NAME] [--run-dir DIR] [OPTIONS]``; the same command resumes."""
    quiet_libraries()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "a run is one process on one GPU, got WORLD_SIZE "
            f"{os.environ['WORLD_SIZE']}: start runs of different --run-dir, each with its own "
            "CUDA_VISIBLE_DEVICES, without torchrun"
        )
    name, options = choose_run(arguments)
    if name in PIPELINES:
        from uae.stages import pipeline  # which trains its stages by this module

        pipeline.main(name, options)
        return
    description, preset = PRESETS[name]
    config = tyro.cli(
        RunConfig, default=preset, args=options, prog=f"uae train {name}", description=description
    )
    if config.dry_run:
        print_footprint(step_shape(config))
        return
    check_out_folder(config.run_dir)
    model = train_model(config)
    appear(config.run_dir / "model", model.save_pretrained)
    print(f"trained model: {config.run_dir / 'model'}   log: {config.run_dir / 'metrics.jsonl'}")
