"""Unified-GRPO as a stage: check, load, train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from uae.config import DecodeSettings
from uae.data.training import FolderImages, check_same_files
from uae.models.base import UnifiedModel
from uae.models.footprint import StepShape
from uae.models.load import load_model
from uae.presets import RunConfig
from uae.rewards.build import backbones_of, build_reward, check_rewards
from uae.rl.train import train
from uae.similarity.backbones import load_backbone
from uae.types import ImageSource
from uae.utils.metrics import check_tensorboard
from uae.world.data import SceneImages

UNRECORDED = (
    "train",
    "run_dir",
    "dry_run",
    "self_contained",
)  # of a run's settings, beside its data


def train_model(config: RunConfig, model_name: str | None = None) -> UnifiedModel:
    """Check everything that can fail early, then train (or resume); the trained model.

    model_name: what the run's record calls the model that it starts from, by default as ``config``
    does.
    """
    if config.backbones is None and not config.data:
        raise ValueError(
            "expected images to learn from: give --data FOLDER (the world's scenes are for the "
            "tiny models)"
        )
    images = image_source(config.data, config.train.decoding, config.train.seed)
    check_rewards(config.rewards, config.backbones)
    check_same_files(images, config.run_dir)
    if config.train.tensorboard:
        check_tensorboard()
    model: Any = load_model(
        config.model, None if config.lora_rank else torch.float32
    )  # what learns is fp32
    model.is_self_contained = config.self_contained
    prepare_policy(model, config)
    device, names = model.encoder.device, backbones_of(config.rewards)
    backbones = {name: load_backbone(name, config.backbones, device=device) for name in names}
    reward = build_reward(
        config.rewards, backbones, model.encoder, config.train.captioning.instruction
    )
    recorded = {name: value for name, value in asdict(config).items() if name not in UNRECORDED}
    recorded["model"] = model_name or config.model
    train(model, reward, images, config.train, config.run_dir, recorded)
    return model


def prepare_policy(model: UnifiedModel, config: RunConfig) -> None:
    """Choose what learns, by the weights of the two halves: vision tower and codec never do."""
    if config.text_encoder is not None:
        if not hasattr(model, "text_encoder"):
            raise ValueError(
                "--text-encoder: expected a model that paints by diffusion, got "
                f"{type(model).__name__}, whose captions need none; leave it out"
            )
        model.text_encoder = config.text_encoder  # type: ignore[attr-defined]
    run = config.train
    decoding = run.decoding if run.image_weight else None
    model.begin_training(config.lora_rank, captions=run.caption_weight > 0, decoding=decoding)


def step_shape(config: RunConfig) -> StepShape:
    """What decides the memory of a step, from a run's settings."""
    decoders = [
        size for size in ("large", "medium") if f"stable-diffusion-3.5-{size}" in config.model
    ]
    if len(decoders) != 1 or "Qwen2.5-VL-3B" not in config.model:
        raise ValueError(
            "--dry-run knows Qwen2.5-VL-3B-Instruct with stable-diffusion-3.5-large or -medium, "
            f"got {config.model}; try `uae train paper --dry-run`"
        )
    run = config.train
    if run.decoding.sampler != "ode":
        raise ValueError(
            "--dry-run knows the memory of training the captioner alone: expected sampler ode, got "
            f"{run.decoding.sampler}"
        )
    num_captions = run.images_per_step * run.group_size
    return StepShape(
        decoder=decoders[0],
        lora_rank=config.lora_rank,
        num_captions=num_captions,
        caption_tokens=run.captioning.max_new_tokens,
        image_height=run.decoding.height,
        image_width=run.decoding.width,
        score_batch=min(run.micro_batch, num_captions),
        decode_batch=min(run.decoding.micro_batch, num_captions * run.reconstructions_per_caption),
        guidance=run.decoding.guidance_scale != 1,
    )


def image_source(data: Sequence[str], decoding: DecodeSettings, seed: int) -> ImageSource:
    """Scenes, or the user's files at the size that is painted."""
    if not data:
        return SceneImages(seed)
    return FolderImages(data, (decoding.height, decoding.width), seed)
