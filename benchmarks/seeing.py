"""What teaches a captioner to see, arm by arm, on the embedded world.

    python benchmarks/seeing.py run ROOT ARM --seed 0   # train, measure; run again, it goes on
    python benchmarks/seeing.py best_of REWARDS         # what choosing among captions reaches
    python benchmarks/seeing.py table ROOT              # what is there, as Markdown

Every arm is the recipe ``seeing-tiny`` with one thing changed: 51,200 captions, 16 images and 8
captions of each a step. Measured on 1,000 test scenes, with 2,000 questions about them; captions
are greedy, and asked for in full detail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from arms import MEASURED, folder_of, parsers, table
from torch import Tensor

from uae.bench.unified import BACKBONES
from uae.config import DecodeSettings
from uae.models.load import load_model
from uae.rewards.build import build_reward
from uae.similarity.backbones import load_backbone
from uae.stages.base import Assignment
from uae.stages.grpo_settings import UnifiedGRPOSettings
from uae.stages.recipes import UNDERSTANDING
from uae.stages.unified_grpo import UnifiedGRPO
from uae.utils.files import atomic_write_json
from uae.utils.quiet import quiet_libraries
from uae.utils.seed import make_generator
from uae.world.captions import caption_quality
from uae.world.data import SCENES, pictures
from uae.world.language import QUESTION_KINDS
from uae.world.measure import WorldSettings, measure_model
from uae.world.recipes import RECIPES
from uae.world.scene import first_scenes

MODEL, START = "tiny-early", "start"
SETTINGS = WorldSettings(num_scenes=1000, num_questions=2000, prompts_per_tag=5)
BASE: UnifiedGRPOSettings = RECIPES["seeing-tiny"].stages[UNDERSTANDING].settings  # type: ignore


def rl(rewards: Mapping[str, float] | None = None, **train: Any) -> UnifiedGRPOSettings:
    """An arm; by default rewards are the recipe's. ``train``: settings of ``TrainConfig``."""
    logged = dict.fromkeys(BACKBONES, 0.0)
    weights = {**logged, **(rewards or BASE.rewards)}
    return replace(BASE, rewards=weights, train=replace(BASE.train, **train))


NOT_PAINTED = DecodeSettings(num_steps=1)  # where no reward looks at it
ARMS: dict[str, UnifiedGRPOSettings] = {
    "clip_dinov2": rl(),
    "clip": rl({"clip": 1.0}),
    "dinov2": rl({"dinov2": 1.0}),
    "objects": rl({"objects": 1.0}),
    "caption_objects": rl({"caption_objects": 1.0}, decoding=NOT_PAINTED),
    "image_text": rl({"image_text": 1.0}, decoding=NOT_PAINTED),
    "shuffled": rl({"seeing:shuffled": 1.0}),
    "anchor": rl(anchor_coef=1.0),
    "images_8": rl(images_per_step=8, num_steps=800),
    "captions_16": rl(images_per_step=8, group_size=16),
}
COLUMNS = {
    "caption_complete": "complete",
    "small_recall": "of small ones",
    "caption_precision": "precision",
    "perception": "questions",
    "perception_small": "about small objects",
    "unified_score": "Unified-Score",
    "unified_score_if_true": "if true",
    "longclip": "longclip",
    "dinov3": "dinov3",
}


def shuffled(sources: Sequence[Tensor], captions: list[str], reconstructions: Tensor) -> Tensor:
    """The recipe's reward, given to another caption of the same image: what learning is when
    nothing is told by it."""
    if not _loaded:
        _loaded.update({name: load_backbone(name, "tiny") for name in ("clip", "dinov2")})
    reward = build_reward({"clip": 1.0, "dinov2": 1.0}, _loaded)
    groups = reward(sources, captions, reconstructions).view(len(sources), -1)
    draws = make_generator("shuffled", *captions[:2])
    return torch.stack([row[torch.randperm(len(row), generator=draws)] for row in groups]).flatten()


_loaded: dict[str, Any] = {}


def run(root: Path, arm: str, seed: int) -> None:
    """Train and measure one arm; what is done already is not done again."""
    folder = folder_of(root, arm, seed)
    if (folder / MEASURED).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if arm != START and not (folder / "model").exists():
        settings = replace(ARMS[arm], train=replace(ARMS[arm].train, seed=seed))
        UnifiedGRPO(settings, SCENES).run(Assignment(MODEL, folder, MODEL))
    numbers = measure(load_model(MODEL if arm == START else str(folder / "model")))
    atomic_write_json(folder / MEASURED, numbers)
    print(arm, seed, numbers, flush=True)


def measure(model: Any) -> dict[str, Any]:
    result = measure_model(model, {n: load_backbone(n, "tiny") for n in BACKBONES}, SETTINGS)
    by_kind = {kind: result.details["perception"][kind]["percent"] for kind in QUESTION_KINDS}
    return {**result.numbers, **by_kind}


@torch.no_grad()
def best_of(rewards: Mapping[str, float], num_captions: int = 8) -> str:
    """Of captions of the start at temperature 1: the best of each image's by a reward, and their
    mean, as complete objects of 1,000 test scenes."""
    model: Any = load_model(MODEL)
    scenes = first_scenes("test", SETTINGS.num_scenes)
    reward = build_reward(rewards, {n: load_backbone(n, "tiny") for n in BACKBONES})
    best: list[str] = []
    drawn: list[str] = []
    for start in range(0, len(scenes), 50):
        images = list(pictures(scenes[start : start + 50]))
        captions = model.caption(
            images, BASE.train.captioning, group_size=num_captions, seed=0, step=start
        )
        painted = model.reconstruct(captions, BASE.train.decoding, seed=0, step=start).images
        values = reward(images, captions.texts, painted.float()).view(len(images), -1)
        rows = [captions.texts[i : i + num_captions] for i in range(0, len(captions), num_captions)]
        best += [row[int(i)] for row, i in zip(rows, values.argmax(1), strict=True)]
        drawn += captions.texts
    of_best = caption_quality(best, scenes)
    of_all = caption_quality(drawn, [scene for scene in scenes for _ in range(num_captions)])
    shown = ("recall_complete", "small_recall", "precision")
    return "\n".join(
        f"{name}: " + "  ".join(f"{key} {quality[key]:.1f}" for key in shown)
        for name, quality in (("best", of_best), ("mean", of_all))
    )


def main() -> None:
    parser, commands, _ = parsers(__doc__, [START, *ARMS])
    choosing = commands.add_parser("best_of", help="what choosing among captions reaches")
    choosing.add_argument("rewards", nargs="+")
    args = parser.parse_args()
    quiet_libraries()
    if args.command == "table":
        print(table(args.root, (START, *ARMS), COLUMNS))
        return
    if args.command == "best_of":
        print(best_of(dict.fromkeys(args.rewards, 1.0)))
        return
    for arm in args.arms:
        run(args.root, arm, args.seed)


if __name__ == "__main__":
    main()
