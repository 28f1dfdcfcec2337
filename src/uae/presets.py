"""Training runs by name. Each is a full configuration; the command line overrides single fields."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from uae import catalog
from uae.config import IN_DETAIL, DecodeSettings, RewardWeights, TextEncoder, check_reward_weights
from uae.rl.config import TrainConfig
from uae.rl.losses import Objective
from uae.utils.ranges import AT_LEAST_0, check_ranges

Half = Literal["both", "captions", "images"]


@dataclass(frozen=True)
class RunConfig:
    """What is trained on what, for which reward."""

    model: str = "tiny"
    """`tiny`, `tiny-ar`, a folder that uae wrote, Janus-Pro, or ENCODER+DECODER by hub id or
    folder."""
    data: tuple[str, ...] = ()
    """Image files or folders; none means scenes of the embedded world."""
    rewards: RewardWeights = field(
        default_factory=lambda: {"clip": 1.0, "longclip": 0.0, "dinov2": 0.0, "dinov3": 0.0}
    )
    """Weights of rewards by name: backbones (clip, longclip, dinov2, dinov3), image_text,
    caption_likelihood, ssim, objects, ocr, or a function of your own as MODULE:FUNCTION. Weight 0
    is only logged: a held-out backbone."""
    backbones: str | None = "tiny"
    """`tiny` for the world's own backbones, None for the published checkpoints."""
    lora_rank: int = 0
    """Rank of LoRA on all linear layers of the language model (alpha is twice the rank); 0 trains
    it fully."""
    text_encoder: TextEncoder | None = None
    """Who encodes captions for a diffusion decoder: the `policy`, which learns (the paper), or the
    frozen `reference`, which is saved with the model; None leaves it as the model says."""
    self_contained: bool = False
    """Save the base's weights beside a LoRA run's adapters, where else the folder names its
    base."""
    run_dir: Path = Path("runs/train")
    """Where the run lives; an unfinished run there is resumed."""
    dry_run: bool = False
    """Only print what a step would take on one GPU; nothing is loaded. For Qwen2.5-VL-3B +
    SD3.5."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The run itself."""

    def __post_init__(self) -> None:
        check_ranges(self, {"lora_rank": AT_LEAST_0})
        check_reward_weights(self.rewards)


_IN_DETAIL = replace(IN_DETAIL, temperature=1.0)
_CLIP_AND_HELD_OUT = {"clip": 1.0, "dinov2": 0.0}

PRESETS: dict[str, tuple[str, RunConfig]] = {
    "tiny": (
        catalog.PRESETS["tiny"],
        RunConfig(train=TrainConfig(learning_rate=3e-4, lr_scheduler_type="linear")),
    ),
    "tiny-ar": (
        catalog.PRESETS["tiny-ar"],
        RunConfig(
            model="tiny-ar",
            train=TrainConfig(
                num_steps=40,
                decoding=DecodeSettings(temperature=0.5),
                caption_weight=10.0,  # there are ten times as many image tokens
                image_kl_coef=0.1,
                learning_rate=3e-4,
                lr_scheduler_type="linear",
            ),
        ),
    ),
    "paper": (
        catalog.PRESETS["paper"],
        RunConfig(
            model="Qwen/Qwen2.5-VL-3B-Instruct+stabilityai/stable-diffusion-3.5-large",
            backbones=None,
            lora_rank=32,
            rewards=dict(_CLIP_AND_HELD_OUT),
            train=TrainConfig(
                num_steps=1000,
                images_per_step=1,
                group_size=4,
                captioning=_IN_DETAIL,
                decoding=DecodeSettings(
                    num_steps=10, guidance_scale=5.0, height=512, width=512, micro_batch=4
                ),
                objective=Objective(kl_coef=1e-6),
                learning_rate=1e-6,
                micro_batch=4,
            ),
        ),
    ),
    "decoder": (
        catalog.PRESETS["decoder"],
        RunConfig(
            model="Qwen/Qwen2.5-VL-3B-Instruct+stabilityai/stable-diffusion-3.5-medium",
            backbones=None,
            lora_rank=32,
            rewards=dict(_CLIP_AND_HELD_OUT),
            train=TrainConfig(
                num_steps=1000,
                images_per_step=2,
                group_size=1,
                reconstructions_per_caption=24,
                captioning=_IN_DETAIL,
                decoding=DecodeSettings(
                    num_steps=10,
                    sampler="sde",
                    window_size=9,
                    guidance_scale=4.5,
                    height=512,
                    width=512,
                    micro_batch=4,
                ),
                objective=Objective(
                    clip_eps_low=1e-4,
                    clip_eps_high=1e-4,
                    kl_coef=0.04,
                    scale_rewards="batch",
                    advantage_clamp=5.0,
                ),
                caption_weight=0.0,
                learning_rate=3e-4,
                num_updates=2,
                ema_decay=0.9,
                micro_batch=1,
            ),
        ),
    ),
    "janus": (
        catalog.PRESETS["janus"],
        RunConfig(
            model="deepseek-community/Janus-Pro-1B",
            backbones=None,
            lora_rank=32,
            rewards=dict(_CLIP_AND_HELD_OUT),
            train=TrainConfig(
                num_steps=1000,
                images_per_step=1,
                captioning=_IN_DETAIL,
                decoding=DecodeSettings(guidance_scale=5.0, height=384, width=384, micro_batch=8),
                objective=Objective(
                    clip_eps_low=1e9, clip_eps_high=1e9, kl_coef=0.01, normalization="dapo"
                ),
                learning_rate=1e-6,
                micro_batch=2,
            ),
        ),
    ),
}


def learning(train: TrainConfig, half: Half) -> TrainConfig:
    """The settings under which this half of the model learns, from as many images as before.

    Painting alone compares reconstructions of one caption. Painting by diffusion is learnt from two
    noisy steps.
    """
    if half != "captions":
        train = replace(train, decoding=replace(train.decoding, sampler="sde", window_size=2))
    if half == "images":
        return replace(
            train, group_size=1, reconstructions_per_caption=train.group_size, caption_weight=0.0
        )
    return replace(train, image_weight=train.image_weight * (half != "captions"))
