"""Training runs by name: each is a list of stages, which hand a model on (arXiv 2509.09666).

| version | stages                                                                    |
|---------|---------------------------------------------------------------------------|
| v1      | long captions → cold start → encoder RL → decoder RL                      |
| v3      | long captions → encoder RL → decoder RL                                   |
| v5      | Unified-GRPO: the encoder of a UMM-1; both halves of a UMM-2              |

The paper calls RL of the encoder under a frozen decoder *generation for understanding*, and that of
the decoder *understanding for generation*. The tiny models' recipes are in ``world/recipes.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from uae.config import IN_DETAIL, DecodeSettings
from uae.diffusion.forward import AWM
from uae.rl.config import TrainConfig
from uae.rl.losses import Objective
from uae.stages.base import Stage
from uae.stages.cold_start import ColdStart, ColdStartConfig
from uae.stages.grpo_settings import UnifiedGRPOSettings
from uae.stages.long_captions import LongCaptionConfig, LongCaptions
from uae.stages.unified_grpo import UnifiedGRPO

UNDERSTANDING, GENERATION = "generation_for_understanding", "understanding_for_generation"
ALONE = ""
"""The name of a stage that is a whole run: it lies in the run's own folder."""
Measure = Callable[[str], dict[str, Any]]
"""From a model, as ``load_model`` takes it, to what is recorded of it: ``measured``, numbers by
name, and ``samples`` to look at; ready for JSON."""


@dataclass(frozen=True)
class Recipe:
    """Stages by name, in order, and the model that the first starts from."""

    model: str
    """As ``load_model`` takes it."""
    stages: Mapping[str, Stage]
    measure: Measure | None = None
    """What is measured of the model at the start and after each stage."""

    @property
    def stage(self) -> Stage:
        """The only one."""
        (stage,) = self.stages.values()
        return stage


_PAPER_MODEL = "Qwen/Qwen2.5-VL-3B-Instruct+stabilityai/stable-diffusion-3.5-large"
_CAPTIONING = replace(IN_DETAIL, temperature=1.0)
_REWARDS = {"clip": 1.0, "dinov2": 0.0}  # one backbone is held out
_ENCODER_RL = UnifiedGRPOSettings(
    backbones=None,
    lora_rank=32,
    rewards=dict(_REWARDS),
    train=TrainConfig(
        num_steps=1000,
        images_per_step=1,
        group_size=4,
        captioning=_CAPTIONING,
        decoding=DecodeSettings(
            num_steps=10, guidance_scale=5.0, height=512, width=512, micro_batch=4
        ),
        objective=Objective(kl_coef=1e-6),
        learning_rate=1e-6,
        micro_batch=4,
    ),
)
_DECODER_RL = UnifiedGRPOSettings(  # advantage-weighted matching, as released for SD3.5-medium
    backbones=None,
    lora_rank=32,
    rewards=dict(_REWARDS),
    train=TrainConfig(
        num_steps=1000,
        images_per_step=72,
        group_size=1,
        reconstructions_per_caption=24,
        captioning=_CAPTIONING,
        decoding=DecodeSettings(num_steps=14, height=512, width=512, micro_batch=4),
        caption_weight=0.0,
        decoder_update="awm",
        awm=AWM(reference_coef=3e-3),
        learning_rate=3e-4,
        ema_decay=0.99,
        ema_every=1,
        micro_batch=1,
    ),
)
_JANUS = UnifiedGRPOSettings(  # T2I-R1
    backbones=None,
    lora_rank=32,
    rewards=dict(_REWARDS),
    train=TrainConfig(
        num_steps=1000,
        images_per_step=1,
        captioning=_CAPTIONING,
        decoding=DecodeSettings(guidance_scale=5.0, height=384, width=384, micro_batch=8),
        objective=Objective(
            clip_eps_low=1e9, clip_eps_high=1e9, kl_coef=0.01, normalization="dapo"
        ),
        learning_rate=1e-6,
        micro_batch=2,
    ),
)
_LONG_CAPTIONS = LongCaptions(
    LongCaptionConfig(  # the paper trains all of the MM-DiT, which takes several GPUs in fp32
        data=(), num_steps=20_000, batch_size=8, learning_rate=1e-4, resolution=512, lora_rank=32
    )
)
_COLD_START = ColdStart(
    ColdStartConfig(
        num_steps=1_000,
        images_per_step=4,
        captioning=_CAPTIONING,
        decoding=replace(_ENCODER_RL.train.decoding, num_steps=4, guidance_scale=1.0),
        lora_rank=32,
        backbones=None,
    )
)
_RL = {UNDERSTANDING: UnifiedGRPO(_ENCODER_RL), GENERATION: UnifiedGRPO(_DECODER_RL)}

RECIPES = {
    "paper": Recipe(_PAPER_MODEL, {ALONE: UnifiedGRPO(_ENCODER_RL)}),
    "decoder": Recipe(
        "Qwen/Qwen2.5-VL-3B-Instruct+stabilityai/stable-diffusion-3.5-medium",
        {ALONE: UnifiedGRPO(_DECODER_RL)},
    ),
    "janus": Recipe("deepseek-community/Janus-Pro-1B", {ALONE: UnifiedGRPO(_JANUS)}),
    "v1": Recipe(_PAPER_MODEL, {"long_captions": _LONG_CAPTIONS, "cold_start": _COLD_START, **_RL}),
    "v3": Recipe(_PAPER_MODEL, {"long_captions": _LONG_CAPTIONS, **_RL}),
    "v5": Recipe(_PAPER_MODEL, {"unified_grpo": UnifiedGRPO(_ENCODER_RL)}),
    "v5-ar": Recipe("deepseek-community/Janus-Pro-1B", {"unified_grpo": UnifiedGRPO(_JANUS)}),
}
