"""Training runs of the tiny models: the recipes of ``stages/recipes.py`` in the embedded world.

The world hands in what they learn from and what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from uae.bench.unified import BACKBONES
from uae.config import CaptionSettings, DecodeSettings
from uae.data.captions import check_pyarrow
from uae.models.load import load_model
from uae.report.stages_page import sample_to_json
from uae.rl.config import TrainConfig
from uae.rl.losses import Objective
from uae.similarity.backbones import load_backbone
from uae.stages.base import Assignment, UserData
from uae.stages.cold_start import ColdStart, ColdStartConfig
from uae.stages.grpo_settings import WORLD, Half, UnifiedGRPOSettings, learning
from uae.stages.long_captions import LongCaptionConfig, LongCaptions
from uae.stages.recipes import ALONE, GENERATION, UNDERSTANDING, Recipe
from uae.stages.unified_grpo import UnifiedGRPO
from uae.utils.files import appear
from uae.utils.processes import of_main
from uae.world.data import SCENES, SceneImages
from uae.world.language import INSTRUCTIONS
from uae.world.measure import measure_model
from uae.world.pairs import write_captioned_scenes

PAIRS, NUM_PAIRS = "captioned_scenes", 50_000
"""Folder in a run's, and number, of the captioned scenes that long captions are learnt from."""


@dataclass(frozen=True)
class SceneCaptions(LongCaptions):
    """Long-caption pretraining on captioned scenes, drawn where the user gives no captions."""

    def given(self, user: UserData) -> LongCaptions:
        stage = super().given(user)
        if stage.settings.data:
            return stage
        return replace(stage, settings=replace(stage.settings, data=(str(user.run_dir / PAIRS),)))

    def check(self) -> None:
        check_pyarrow()

    def run(self, work: Assignment) -> None:
        pairs = work.folder.parent / PAIRS
        if self.settings.data == (str(pairs),) and not of_main(pairs.exists()):
            appear(pairs, lambda unfinished: write_captioned_scenes(unfinished, NUM_PAIRS))
        super().run(work)


def measure_saved(source: str) -> dict[str, Any]:
    """The world's numbers of a model, loaded again, and its round trips of some pictures."""
    model: Any = load_model(source)
    result = measure_model(model, {name: load_backbone(name, "tiny") for name in BACKBONES})
    samples = [sample_to_json(sample) for sample in result.samples]
    return {"measured": result.to_json(), "samples": samples}


def _grpo(settings: UnifiedGRPOSettings) -> UnifiedGRPO:
    return UnifiedGRPO(settings, SCENES)


def _with(settings: UnifiedGRPOSettings, **train: Any) -> UnifiedGRPOSettings:
    return replace(settings, train=replace(settings.train, **train))


def _half(settings: UnifiedGRPOSettings, half: Half) -> UnifiedGRPOSettings:
    return replace(settings, train=learning(settings.train, half))


def _joint(settings: UnifiedGRPOSettings, **train: Any) -> UnifiedGRPOSettings:
    """Captions learn from images, painting from prompts, in one step."""
    joint = _with(settings, reconstructions_per_caption=8, **train)
    return replace(joint, prompts=WORLD, prompt_rewards=dict(_JUDGE))


_JUDGE = {"judge": 1.0, "clip_score": 0.0}
_TINY = UnifiedGRPOSettings(
    train=TrainConfig(
        decoding=DecodeSettings(num_steps=6),
        anchor_coef=1.0,  # it goes on answering
        questions_per_step=64,
        learning_rate=3e-4,
        lr_scheduler_type="linear",
    )
)
_FEW_STEPS = DecodeSettings(num_steps=4)
"""Captions that tell all are painted as rightly in four steps as in ten (``docs/log.md``)."""
_SEEING = replace(  # always asked for detail: length has nothing to give
    _with(
        _TINY,
        num_steps=800,  # half as many of 16 images see less
        captioning=CaptionSettings(INSTRUCTIONS["detailed"], max_new_tokens=40),
        decoding=_FEW_STEPS,
        anchor_coef=0.0,
        objective=Objective(kl_coef=0.0),
        learning_rate=1e-4,
    ),
    rewards={"clip": 1.0, "dinov2": 1.0, "longclip": 0.0, "dinov3": 0.0},
)
_TINY_AR = UnifiedGRPOSettings(
    train=TrainConfig(
        num_steps=40,
        decoding=DecodeSettings(temperature=0.5),
        caption_weight=10.0,  # there are ten times as many image tokens
        image_kl_coef=0.1,
        learning_rate=3e-4,
        lr_scheduler_type="linear",
    ),
)
_CAPTIONS_AR = _with(
    _half(_TINY_AR, "captions"),
    num_steps=80,
    decoding=DecodeSettings(temperature=0.0),  # as it is measured; nothing explores by painting
    learning_rate=1e-4,
)
_JOINT = _joint(
    _TINY,
    num_steps=160,
    decoder_update="awm",
    matching_coef=0.5,
    learning_rate=1.5e-4,
    decoder_learning_rate=1e-4,
)
_JOINT_AR = _joint(
    _TINY_AR,
    num_steps=80,
    objective=Objective(kl_coef=0.1),  # of captions too: naming a thing twice hardly costs reward
    matching_coef=1.0,
    learning_rate=1e-4,
    decoder_learning_rate=1e-4,  # the same, with moments of its own
    ema_decay=0.9,
    ema_every=1,
)
"""Where painting learns too, three runs of four pass what asking for detail brings; captions alone
end just below (``docs/log.md``)."""
_PAINTING = replace(
    _with(
        _TINY,
        num_steps=313,
        group_size=1,
        reconstructions_per_caption=8,
        caption_weight=0.0,
        anchor_coef=0.0,
        decoding=DecodeSettings(),
        decoder_update="awm",
        matching_coef=0.5,
        learning_rate=7e-4,
    ),
    prompts=WORLD,
    rewards=dict(_JUDGE),
    lora_rank=16,
)
"""Painting learns from 20,032 pictures of prompts, judged by what each requires."""
_PAINTING_AR = replace(
    _with(
        _half(_TINY_AR, "images"),
        num_steps=313,
        image_kl_coef=0.01,
        matching_coef=0.5,
        learning_rate=1e-4,
    ),
    prompts=WORLD,
    rewards=dict(_JUDGE),
)
_LONG_CAPTIONS = SceneCaptions(
    LongCaptionConfig(
        data=(),
        num_steps=1500,
        batch_size=32,
        learning_rate=5e-4,
        resolution=48,
        num_held_out=128,
    )
)
_COLD_START = ColdStart(
    ColdStartConfig(num_steps=100, images_per_step=32, learning_rate=2e-5), SceneImages
)
_RL = {UNDERSTANDING: _grpo(_TINY), GENERATION: _grpo(_PAINTING)}
_RL_AR = {
    UNDERSTANDING: _grpo(_CAPTIONS_AR),
    GENERATION: _grpo(_PAINTING_AR),
}

QUICK: Mapping[str, dict[Half | Literal["seeing"] | None, UnifiedGRPOSettings]] = {
    "umm1": {
        None: _TINY,
        "both": _half(_TINY, "both"),
        "captions": _half(_TINY, "captions"),
        "images": _with(  # a window of random steps costs a third, and these are few
            _PAINTING,
            num_steps=150,
            decoder_update="policy_gradient",
            decoding=DecodeSettings(sampler="sde", window_size=2),
            objective=Objective(kl_coef=0.0),
            matching_coef=0.0,
        ),
        "seeing": _with(_SEEING, num_steps=150, images_per_step=16),  # in few steps 8 see less
    },
    "umm2": {
        None: _JOINT_AR,
        "both": _JOINT_AR,
        "captions": _CAPTIONS_AR,
        "images": _with(_PAINTING_AR, num_steps=80),
    },
}
"""What a few minutes suffice for: of each family, by what learns; None is the quickstart's own."""

RECIPES = {
    "tiny": Recipe("tiny", {ALONE: _grpo(_TINY)}),
    "tiny-ar": Recipe("tiny-ar", {ALONE: _grpo(_TINY_AR)}),
    "v1-tiny": Recipe(
        "tiny",
        {"long_captions": _LONG_CAPTIONS, "cold_start": _COLD_START, **_RL},
        measure_saved,
    ),
    "v3-tiny": Recipe("tiny", {"long_captions": _LONG_CAPTIONS, **_RL}, measure_saved),
    "v5-tiny": Recipe("tiny", {"unified_grpo": _grpo(_TINY)}, measure_saved),
    "seeing-tiny": Recipe("tiny-early", {UNDERSTANDING: _grpo(_SEEING)}, measure_saved),
    "decoder-tiny": Recipe("tiny", {GENERATION: _grpo(_PAINTING)}, measure_saved),
    "joint-tiny": Recipe("tiny", {"joint": _grpo(_JOINT)}, measure_saved),
    "v5-tiny-ar": Recipe("tiny-ar", {"unified_grpo": _grpo(_TINY_AR)}, measure_saved),
    "joint-tiny-ar": Recipe("tiny-ar", {"joint": _grpo(_JOINT_AR)}, measure_saved),
    "v3-tiny-ar": Recipe("tiny-ar", _RL_AR, measure_saved),
}
