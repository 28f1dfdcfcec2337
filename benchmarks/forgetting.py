"""What learning to caption costs in answers, and what holds them.

    python benchmarks/forgetting.py run ROOT ARM --seed 0   # train, measure; run again, it goes on
    python benchmarks/forgetting.py table ROOT              # what is there, as Markdown

Every arm is the quickstart's stage (recipe ``tiny``, 80 steps) with one thing changed. Measured on
250 test scenes, with 1,000 questions about them, 420 prompts, and 300 exhaustive captions.
``six_steps_anchor_64`` is the recipe as it is; ``texts`` also holds what prompts tell the decoder,
``reference`` leaves that to a frozen copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from arms import MEASURED, folder_of, parsers, table
from painting import objects_of_captions

from uae.bench.unified import BACKBONES
from uae.config import DecodeSettings
from uae.models.load import load_model
from uae.similarity.backbones import load_backbone
from uae.stages.base import Assignment
from uae.stages.unified_grpo import UnifiedGRPO
from uae.utils.files import atomic_write_json
from uae.utils.quiet import quiet_libraries
from uae.world.measure import WorldSettings, measure_model
from uae.world.recipes import RECIPES

MODELS = {"umm1": "tiny", "umm2": "tiny-ar"}
STARTS = ("start", "start_umm2")
TEN_STEPS, SIX_STEPS, FOUR_STEPS = ({"decoding": DecodeSettings(num_steps=n)} for n in (10, 6, 4))
NO_ANCHOR = {"anchor_coef": 0.0}
ANCHOR_16, ANCHOR_64 = ({"anchor_coef": 1.0, "questions_per_step": n} for n in (16, 64))
RECIPE = {**SIX_STEPS, **ANCHOR_64}
ARMS: dict[str, Mapping[str, Any]] = {
    "none": {**TEN_STEPS, **NO_ANCHOR},
    "anchor": {**TEN_STEPS, **ANCHOR_16},
    "anchor_3": {**TEN_STEPS, **ANCHOR_16, "anchor_coef": 3.0},
    "few_steps": {**FOUR_STEPS, **NO_ANCHOR},
    "few_steps_anchor_64": {**FOUR_STEPS, **ANCHOR_64},
    "six_steps_anchor_64": RECIPE,
    "texts": {**RECIPE, "text_anchor_coef": 1.0},
    "reference": {**RECIPE, "text_encoder": "reference"},
    "kl": {**SIX_STEPS, **NO_ANCHOR, "kl_coef": 0.04},
    "umm2_none": NO_ANCHOR,
    "umm2_anchor_64": ANCHOR_64,
}
SETTINGS = WorldSettings(num_scenes=250, num_questions=1000, prompts_per_tag=70)
COLUMNS = {
    "unified_score": "Unified-Score",
    "perception": "questions right",
    "perception_small": "about small objects",
    "caption_precision": "caption precision",
    "small_recall": "small objects in captions",
    "geneval": "GenEval-style",
    "exhaustive": "objects of exhaustive captions",
}


def run(root: Path, arm: str, seed: int, model: str | None = None) -> None:
    """Train and measure one arm; what is done already is not done again."""
    folder = folder_of(root, arm, seed)
    if (folder / MEASURED).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    recipe = MODELS["umm2" if "umm2" in arm else "umm1"]
    source = model or recipe
    if arm not in STARTS and not (folder / "model").exists():
        changed(RECIPES[recipe].stage, ARMS[arm], seed).run(Assignment(source, folder, source))
    trained: Any = load_model(source if arm in STARTS else str(folder / "model"))
    backbones = {name: load_backbone(name, "tiny") for name in BACKBONES}
    numbers = measure_model(trained, backbones, SETTINGS).numbers
    numbers["exhaustive"] = objects_of_captions(trained)
    atomic_write_json(folder / MEASURED, numbers)
    print(arm, seed, numbers, flush=True)


def changed(stage: Any, changes: Mapping[str, Any], seed: int) -> UnifiedGRPO:
    settings = replace(stage.settings, train=replace(stage.settings.train, seed=seed))
    for name, value in changes.items():
        train = settings.train
        if name == "text_encoder":
            settings = replace(settings, text_encoder=value)
        elif name == "kl_coef":
            objective = replace(train.objective, kl_coef=value)
            settings = replace(settings, train=replace(train, objective=objective))
        else:
            settings = replace(settings, train=replace(train, **{name: value}))
    return replace(stage, settings=settings)


def main() -> None:
    parser, _, running = parsers(__doc__, [*STARTS, *ARMS])
    running.add_argument("--model", help="what all begin with, in place of the shipped model")
    args = parser.parse_args()
    quiet_libraries()
    if args.command == "table":
        print(table(args.root, (*STARTS, *ARMS), COLUMNS))
        return
    for arm in args.arms:
        run(args.root, arm, args.seed, args.model)


if __name__ == "__main__":
    main()
