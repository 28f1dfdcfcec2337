"""What teaches a captioner to see, arm by arm, on the embedded world.

    python benchmarks/seeing.py run ROOT ARM --seed 0   # train, measure; run again, it goes on
    python benchmarks/seeing.py backbones ROOT          # CLIP and DINOv2 that know shapes
    python benchmarks/seeing.py best_of REWARDS         # what choosing among captions reaches
    python benchmarks/seeing.py table ROOT              # what is there, as Markdown

Every arm learns from 51,200 captions: 400 steps of 16 images and 8 captions of each, by the other
settings of the recipe ``seeing-tiny``, with one thing changed. ``images_8`` is the recipe: 800
steps of 8 images. Measured on 1,000 test scenes, with 2,000 questions about them; captions are
greedy, and asked for in full detail. The decoder, which does not learn, runs by compiled code where
this machine can.

Controls: ``shuffled`` is what updates do when nothing is told by the reward, ``best_of`` what
choosing does without learning, ``supervised`` what labels reach on as many pictures. ``tower``
unfreezes the vision tower. ``shapes`` is judged by backbones trained on, on pictures that mostly
differ in one shape (``backbones``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from arms import MEASURED, folder_of, parsers, table
from torch import Tensor, nn
from transformers import CLIPModel, Dinov2Model

from uae.bench.unified import BACKBONES
from uae.config import DecodeSettings
from uae.models.encoders.causal import CaptionContext, Prefix
from uae.models.encoders.qwen_vl import QwenVL
from uae.models.load import load_model, load_to_train
from uae.rewards.build import build_reward
from uae.similarity.backbones import load_backbone
from uae.stages.base import Assignment
from uae.stages.fit import FitSettings, fit
from uae.stages.grpo_settings import UnifiedGRPOSettings
from uae.stages.recipes import UNDERSTANDING
from uae.stages.unified_grpo import UnifiedGRPO
from uae.utils.assets import ASSETS
from uae.utils.device import autocast, can_compile
from uae.utils.files import atomic_write_json
from uae.utils.quiet import quiet_libraries
from uae.utils.seed import make_generator
from uae.world.build import backbones as training
from uae.world.captions import caption_quality
from uae.world.data import SCENES, pictures, train_scenes
from uae.world.language import INSTRUCTIONS, QUESTION_KINDS, caption
from uae.world.measure import WorldSettings, measure_model
from uae.world.quality import measure_backbone
from uae.world.recipes import RECIPES
from uae.world.scene import first_scenes

MODEL, START, BACKBONES_AT = "tiny-early", "start", "backbones"
JUDGES = ("clip", "dinov2")
SETTINGS = WorldSettings(num_scenes=1000, num_questions=2000, prompts_per_tag=5)
RECIPE: UnifiedGRPOSettings = RECIPES["seeing-tiny"].stages[UNDERSTANDING].settings  # type: ignore
BASE = replace(RECIPE, train=replace(RECIPE.train, num_steps=400, images_per_step=16))
Arm = Callable[[int, Path], None]
"""Trains, from a seed and the arm's folder."""


def rl(
    rewards: Mapping[str, float] | None = None,
    stage: type[UnifiedGRPO] = UnifiedGRPO,
    **train: Any,
) -> Arm:
    """An arm of reinforcement learning; by default rewards are the recipe's. ``train``: settings of
    ``TrainConfig``."""
    logged = dict.fromkeys(BACKBONES, 0.0)
    weights = {**logged, **(rewards or BASE.rewards)}
    given = {"compile_decoder": can_compile(), **train}

    def run_stage(seed: int, folder: Path) -> None:
        config = replace(BASE.train, **given, seed=seed)
        settings = replace(BASE, rewards=weights, train=config)
        stage(settings, SCENES).run(Assignment(MODEL, folder, MODEL))

    return run_stage


# --- judges --------------------------------------------------------------------------------------


def shuffled(sources: Sequence[Tensor], captions: list[str], reconstructions: Tensor) -> Tensor:
    """The recipe's reward, given to another caption of the same image: what learning is when
    nothing is told by it."""
    reward = build_reward(dict.fromkeys(JUDGES, 1.0), _judges())
    groups = reward(sources, captions, reconstructions).view(len(sources), -1)
    draws = make_generator("shuffled", *captions[:2])
    return torch.stack([row[torch.randperm(len(row), generator=draws)] for row in groups]).flatten()


def shapes(sources: Sequence[Tensor], captions: list[str], reconstructions: Tensor) -> Tensor:
    """The recipe's reward, by the backbones that know shapes."""
    reward = build_reward(dict.fromkeys(JUDGES, 1.0), _judges(_places["root"] / BACKBONES_AT))
    return reward(sources, captions, reconstructions)


_places: dict[str, Path] = {}  # root: of the arms
_loaded: dict[Path | None, dict[str, Any]] = {}  # by folder


def _judges(folder: Path | None = None) -> dict[str, Any]:
    """CLIP and DINOv2: of the world, or those in ``folder``; loaded once."""
    if folder not in _loaded:
        sources = {name: str(folder / name / "export") if folder else "tiny" for name in JUDGES}
        _loaded[folder] = {name: load_backbone(name, sources[name]) for name in JUDGES}
    return _loaded[folder]


def train_backbones(root: Path) -> None:
    """The world's CLIP and DINOv2, trained on, on scenes that mostly differ in a shape; how much
    of the cosine a wrong attribute costs before and after."""
    settings = FitSettings(num_steps=1500, batch_size=64, learning_rate=5e-4, warmup_steps=50)
    clip = CLIPModel.from_pretrained(ASSETS / "clip", dtype=torch.float32)
    dino = Dinov2Model.from_pretrained(ASSETS / "dinov2", dtype=torch.float32)
    tasks = {
        "clip": training.ContrastiveTask("clip", settings, clip, training.short_caption),
        "dinov2": training.SelfDistillationTask("dinov2", settings, dino),
    }
    for name, task in tasks.items():
        task.kinds = ("shape", "shape", "shape", "size", "color")
        fit(task, root / BACKBONES_AT / name)  # type: ignore[arg-type]
        for source in ("tiny", str(root / BACKBONES_AT / name / "export")):
            numbers = measure_backbone(load_backbone(name, source))
            costs = {k: v for k, v in numbers.items() if k.startswith("sensitivity/")}
            print(name, source, {k.split("/")[1]: round(v, 3) for k, v in costs.items()})


# --- what learns ---------------------------------------------------------------------------------


class WithTower(UnifiedGRPO):
    """The vision tower learns too."""

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        model.encoder.model.model.visual.requires_grad_(True)
        model.encoder.__class__ = SeesAgain


class SeesAgain(QwenVL):
    """Scores captions on images that are seen anew, with gradients."""

    seen: tuple[Any, list[Tensor]] = (None, [])

    def look(self, images: Any, questions: Any, **settings: Any) -> CaptionContext:
        context = super().look(images, questions, **settings)
        self.seen = context.features, list(images)
        return context

    def prefill(self, context: CaptionContext) -> Prefix:
        if torch.is_grad_enabled():
            features, images = self.seen
            assert features is context.features
            context = replace(context, features=tuple(self.see(images)[0]))
        return super().prefill(context)


class Supervised:
    """Cross-entropy of exhaustive captions of as many pictures as an arm of reinforcement learning
    sees."""

    name = "supervised"

    def __init__(self, seed: int, learning_rate: float) -> None:
        train = BASE.train
        self.fit_settings = FitSettings(
            num_steps=train.num_steps,
            batch_size=train.images_per_step,
            learning_rate=learning_rate,
            warmup_steps=0,
            ema_decay=0.0,
            seed=seed,
        )
        self.model: Any = load_to_train(MODEL, 0)
        self.model.begin_training(0, captions=True, decoding=None)
        self.modules: dict[str, nn.Module] = {"encoder": self.model.encoder.model}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        settings, encoder = self.fit_settings, self.model.encoder
        scenes = train_scenes(step, settings.batch_size, seed=settings.seed)
        rng = random.Random(f"supervised {settings.seed} {step}")
        texts = [caption(scene, "exhaustive", rng) for scene in scenes]
        with autocast(encoder.device, use_bf16=True):
            images = list(pictures(scenes))
            scores = encoder.log_likelihood(images, texts, INSTRUCTIONS["detailed"])
        return -scores.mean(), {}

    def evaluate(self) -> dict[str, float]:
        return {}

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


def supervised(learning_rate: float = BASE.train.learning_rate) -> Arm:
    """An arm of imitation, by default at the recipe's rate."""

    def imitate(seed: int, folder: Path) -> None:
        task = Supervised(seed, learning_rate)
        fit(task, folder)
        task.export(folder / "model")

    return imitate


NOT_PAINTED: dict[str, Any] = {  # where no reward looks at it
    "decoding": DecodeSettings(num_steps=1),
    "compile_decoder": False,
}
ARMS: dict[str, Arm] = {
    "clip_dinov2": rl(),
    "clip": rl({"clip": 1.0}),
    "dinov2": rl({"dinov2": 1.0}),
    "objects": rl({"objects": 1.0}),
    "shapes": rl({"seeing:shapes": 1.0}),
    "caption_objects": rl({"caption_objects": 1.0}, **NOT_PAINTED),
    "image_text": rl({"image_text": 1.0}, **NOT_PAINTED),
    "shuffled": rl({"seeing:shuffled": 1.0}),
    "supervised": supervised(),
    "supervised_5e-4": supervised(5e-4),
    "tower": rl(stage=WithTower),
    "anchor": rl(anchor_coef=1.0),
    "images_8": rl(num_steps=800, images_per_step=8),
    "caption_objects_8": rl(
        {"caption_objects": 1.0}, num_steps=800, images_per_step=8, **NOT_PAINTED
    ),
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


def run(root: Path, arm: str, seed: int) -> None:
    """Train and measure one arm; what is done already is not done again."""
    folder = folder_of(root, arm, seed)
    if (folder / MEASURED).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _places["root"] = root
    if arm != START and not (folder / "model").exists():
        ARMS[arm](seed, folder)
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
    commands.add_parser(BACKBONES_AT, help="which know shapes").add_argument("root", type=Path)
    choosing = commands.add_parser("best_of", help="what choosing among captions reaches")
    choosing.add_argument("rewards", nargs="+")
    args = parser.parse_args()
    quiet_libraries()
    if args.command == "table":
        print(table(args.root, (START, *ARMS), COLUMNS))
        return
    if args.command == BACKBONES_AT:
        train_backbones(args.root)
        return
    if args.command == "best_of":
        print(best_of(dict.fromkeys(args.rewards, 1.0)))
        return
    for arm in args.arms:
        run(args.root, arm, args.seed)


if __name__ == "__main__":
    from seeing import main  # the module in which rewards are found by name

    main()
