"""Unified-GRPO as a stage: what is checked before any work, and the run.

Which half learns is a matter of weights: *generation for understanding* is RL of the encoder under
a frozen decoder, *understanding for generation* that of the decoder (arXiv 2509.09666).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from uae.config import RewardWeights
from uae.models.base import UnifiedModel
from uae.models.load import load_to_train
from uae.rewards.base import WeightedSum
from uae.rewards.build import (
    backbones_of,
    build_reward,
    check_rewards,
    check_rewards_of_prompts,
)
from uae.rl.sampler import check_vllm
from uae.rl.train import train
from uae.similarity.backbones import Backbone, load_backbone
from uae.stages.base import Assignment, UserData
from uae.stages.grpo_settings import WORLD, UnifiedGRPOSettings, record
from uae.stages.sources import Sources, World
from uae.types import Policy
from uae.utils.device import check_device
from uae.utils.files import appear
from uae.utils.metrics import check_tensorboard


class Rewards(NamedTuple):
    """What is learnt for."""

    of_images: WeightedSum
    """Captions of images and their reconstructions, or pictures of prompts alone."""
    of_prompts: WeightedSum | None
    """Pictures of prompts, where images are captioned too and prompts have rewards of their own."""


@dataclass(frozen=True)
class UnifiedGRPO:
    """The stage."""

    settings: UnifiedGRPOSettings
    world: World | None = None
    """For the tiny models."""

    @property
    def sources(self) -> Sources:
        """What is learnt from."""
        return Sources(self.settings, self.world)

    def given(self, user: UserData) -> UnifiedGRPO:
        settings = self.settings
        if settings.captions_images:
            settings = replace(settings, data=user.images or settings.data)
        if user.seed is not None:
            settings = replace(settings, train=replace(settings.train, seed=user.seed))
        return replace(self, settings=settings)

    def check(self) -> None:
        settings = self.settings
        self.sources.check()
        if settings.prompts is not None:
            check_rewards_of_prompts(settings.rewards_of_prompts, settings.prompts == WORLD)
        for rewards in (settings.rewards, settings.prompt_rewards):
            check_rewards(rewards, settings.backbones)
        if settings.reward_device is not None:
            check_device("reward-device", settings.reward_device)
        if settings.train.tensorboard:
            check_tensorboard()
        if settings.train.caption_sampler == "vllm":
            check_vllm(settings.train.vllm)

    def run(self, work: Assignment) -> None:
        settings = self.settings
        self.sources.check_same_files(work.folder)
        model: Any = load_to_train(work.source, settings.lora_rank)
        model.is_self_contained = work.is_self_contained
        self.prepare(model)
        recorded = record(settings, work.recorded_source)
        self.learn(model, self.rewards(model), work.folder, recorded)
        appear(work.folder / "model", model.save_pretrained)

    def prepare(self, model: UnifiedModel) -> None:
        """Choose what learns."""
        prepare_policy(model, self.settings)

    def rewards(
        self, model: UnifiedModel, backbones: Mapping[str, Backbone] | None = None
    ) -> Rewards:
        """What is learnt for; ``backbones``: those that are loaded already."""
        settings = self.settings

        def loaded(weights: RewardWeights) -> WeightedSum:
            question = settings.train.captioning.instruction
            device = settings.reward_device
            return load_reward(weights, settings.backbones, model, question, backbones, device)

        of_prompts = loaded(settings.prompt_rewards) if settings.prompt_rewards else None
        return Rewards(loaded(settings.rewards), of_prompts)

    def learn(
        self,
        model: UnifiedModel,
        rewards: Rewards,
        folder: Path,
        recorded: dict[str, Any],
        until: int | None = None,
    ) -> None:
        """Train a prepared model to step ``until`` of the run in ``folder``, by default to its
        end."""
        sources, run = self.sources, self.settings.train
        source, beside = sources.learnt(), sources.beside()
        reward, of_prompts = rewards
        train(model, reward, source, run, folder, recorded, until, of_prompts, beside)


def prepare_policy(model: UnifiedModel, settings: UnifiedGRPOSettings) -> None:
    """Choose what learns, by the weights of the two halves: vision tower and codec never do. Where
    painting learns, the model paints with that guidance from now on."""
    if settings.text_encoder is not None:
        if not hasattr(model, "text_encoder"):
            raise ValueError(
                "--text-encoder: expected a model that paints by diffusion, got "
                f"{type(model).__name__}, whose captions need none; leave it out"
            )
        model.text_encoder = settings.text_encoder  # type: ignore[attr-defined]
    run = settings.train
    decoding = run.decoding_at(0) if run.image_weight else None
    model.begin_training(settings.lora_rank, captions=run.caption_weight > 0, decoding=decoding)
    painter = model.decoder if isinstance(model.decoder, Policy) else None
    if decoding is not None and painter and painter.named_trainable_parameters():
        model.decoding = replace(model.decoding, guidance_scale=decoding.guidance_scale)


def load_reward(
    weights: RewardWeights,
    source: str | None,
    model: UnifiedModel,
    instruction: str,
    loaded: Mapping[str, Backbone] | None = None,
    device: str | None = None,
) -> WeightedSum:
    """The rewards with the backbones that they need, on ``device``, by default the model's.

    source: of the backbones that are not ``loaded``. instruction: what the model is asked where it
    judges itself.
    """
    place, loaded = device or model.encoder.device, loaded or {}
    backbones = {
        name: loaded.get(name) or load_backbone(name, source, device=place)
        for name in backbones_of(weights)
    }
    return build_reward(weights, backbones, model.encoder, instruction)
