"""The recipes of the embedded world, stage by stage: what docs/results.md says of pipelines.

    python benchmarks/pipelines.py run ROOT RECIPE --seed 0   # run again, it goes on
    python benchmarks/pipelines.py table ROOT                 # what is there, as Markdown

A run is ``uae train RECIPE --seed N`` in ``ROOT/runs``. What it measures after each stage, on 100
test scenes, 120 prompts and 447 questions, becomes a folder ``ROOT/RECIPE.STAGE-seedN``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from arms import MEASURED, folder_of, parsers, table

from uae.stages.pipeline import START
from uae.stages.unified_grpo import UnifiedGRPO
from uae.utils.files import atomic_write_json
from uae.world.recipes import RECIPES

PIPELINES = [name for name, recipe in RECIPES.items() if recipe.measure]
COLUMNS = {
    "unified_score": "Unified-Score",
    "geneval": "GenEval-style",
    "perception": "questions",
    "perception_small": "about small objects",
    "caption_precision": "precision",
    "reconstruction_objects_exact": "objects exactly right",
}


def run(root: Path, recipe: str, seed: int, is_compiled: bool) -> None:
    """Train and measure, and keep what was measured."""
    folder = root / "runs" / f"{recipe}-seed{seed}"
    options = compiled(recipe) if is_compiled else ()
    command = [sys.executable, "-m", "uae", "train", recipe, "--seed", str(seed)]
    subprocess.run([*command, "--run-dir", str(folder), *options], check=True)
    for stage in json.loads((folder / "stages.json").read_text()):
        measured = stage["measured"]
        by_tag = measured.pop("details")["geneval"]
        numbers = measured | {tag: share["percent"] for tag, share in by_tag.items()}
        place = folder_of(root, f"{recipe}.{stage['stage']}", seed)
        place.mkdir(parents=True, exist_ok=True)
        atomic_write_json(place / MEASURED, numbers)


def compiled(recipe: str) -> list[str]:
    """Options by which a diffusion decoder runs as compiled code: the same but for rounding."""
    is_painted_token_by_token = RECIPES[recipe].model == "tiny-ar"
    stages = () if is_painted_token_by_token else RECIPES[recipe].stages.items()
    return [
        f"--{name.replace('_', '-')}.train.compile-decoder"
        for name, stage in stages
        if isinstance(stage, UnifiedGRPO)
    ]


def stages_of(recipes: Iterable[str]) -> list[str]:
    return [f"{name}.{stage}" for name in recipes for stage in (START, *RECIPES[name].stages)]


def main() -> None:
    parser, _, running = parsers(__doc__, PIPELINES)
    running.add_argument("--compiled", action="store_true", help="the decoder by compiled code")
    args = parser.parse_args()
    if args.command == "table":
        print(table(args.root, stages_of(PIPELINES), COLUMNS))
        return
    for recipe in args.arms:
        run(args.root, recipe, args.seed, args.compiled)


if __name__ == "__main__":
    main()
