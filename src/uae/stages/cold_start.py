"""Cold start: the decoder learns to paint what the encoder says by the semantic reconstruction loss
(method v1).

    loss = mean over images of  1 − cos(f(x), f(x̂))
    x̂ = decode(caption(x)) by a few steps of the ODE

``f`` is a frozen backbone (the paper: CLIP ViT-L/14). The gradient flows through the generated
branch alone: backbone, VAE, every step of the ODE, MM-DiT and projector, which learn; the language
model that captions and encodes the caption rests, as its words are not differentiable. All
activations but the latents between steps are computed again on the way back, so memory is that of
one step, whatever their number (``benchmarks/cold_start_memory.py``). Source: arXiv 2509.09666 v1;
steps, rate and captions' instruction are not stated there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from uae.config import CaptionSettings, DecodeSettings, RewardWeights, check_reward_weights
from uae.data.training import check_same_files
from uae.diffusion.sampling import sample_ode
from uae.models.base import check_settings
from uae.models.llm_diffusion import LLMDiffusion
from uae.rewards.base import WeightedSum
from uae.rewards.build import check_rewards
from uae.similarity.checkpoints import ARCHITECTURES
from uae.stages.base import Assignment, UserData
from uae.stages.fit import FitSettings
from uae.stages.sources import Endless, check_images, image_source
from uae.stages.supervised import (
    SupervisedShard,
    check_paints_by_diffusion,
    decoder_learning,
    fit_to_model,
    load_decoder_model,
)
from uae.stages.unified_grpo import load_reward
from uae.types import ImageSource
from uae.utils.device import autocast
from uae.utils.files import json_ready
from uae.utils.processes import slice_of
from uae.utils.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, check_ranges
from uae.utils.seed import normals

NUM_EVALUATED = 16  # images
FREE = ("keep_checkpoints", "shard")  # settings on which the result does not depend
RANGES = {
    **dict.fromkeys(("num_steps", "images_per_step", "keep_checkpoints"), AT_LEAST_1),
    **dict.fromkeys(("warmup_steps", "lora_rank"), AT_LEAST_0),
    "learning_rate": ABOVE_0,
}
DIFFERENTIABLE = (*ARCHITECTURES, "ssim", "caption_likelihood")


@dataclass(frozen=True)
class ColdStartConfig:
    """How the decoder learns from the semantic reconstruction loss."""

    num_steps: int = 200
    """Optimiser steps."""
    images_per_step: int = 8
    """Images captioned and painted in each."""
    learning_rate: float = 1e-5
    """Of AdamW, at its peak."""
    warmup_steps: int = 10
    """Steps of linear warm-up."""
    lora_rank: int = 0
    """Rank of LoRA on the transformer's attention; 0 trains all of it. The projector is trained
    fully."""
    rewards: RewardWeights = field(default_factory=lambda: {"clip": 1.0})
    """Weights of differentiable rewards (clip, longclip, dinov2, dinov3, ssim, caption_likelihood);
    1 minus their sum is the loss."""
    backbones: str | None = "tiny"
    """`tiny` for the world's own backbones, None for the published checkpoints."""
    data: tuple[str, ...] = ()
    """Image files or folders; the tiny models' recipes learn from scenes where there are none."""
    captioning: CaptionSettings = field(default_factory=CaptionSettings)
    """How captions are sampled."""
    decoding: DecodeSettings = field(default_factory=lambda: DecodeSettings(num_steps=4))
    """How they are painted: gradients flow through all these steps."""
    keep_checkpoints: int = 2
    """How many of the last checkpoints stay."""
    shard: SupervisedShard = "nothing"
    """What several processes keep a part each of, block by block (FSDP2): nothing, or the
    transformer that learns, with its moments and its average."""
    use_bf16: bool = True
    """Compute in bf16 where that is safe."""
    seed: int = 0
    """Of data order and draws."""

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        check_reward_weights(self.rewards)
        if self.decoding.sampler != "ode":
            raise ValueError(
                f"decoding.sampler: cold start learns through the ode, got {self.decoding.sampler}"
            )
        no_gradient = [
            name for name, weight in self.rewards.items() if weight and name not in DIFFERENTIABLE
        ]
        if no_gradient:
            raise ValueError(
                f"cold start: expected rewards with a gradient ({', '.join(DIFFERENTIABLE)}), got "
                f"{', '.join(no_gradient)}; train on these by reinforcement learning"
            )


@dataclass(frozen=True)
class ColdStartFit(FitSettings):
    """With the settings that a resumed run must share."""

    settings: dict[str, Any] = field(default_factory=dict)
    """All of ``ColdStartConfig`` that the result depends on."""


@dataclass(frozen=True)
class ColdStart:
    """The stage."""

    settings: ColdStartConfig
    endless: Endless | None = None
    """What is learnt from where the settings name no files."""

    def given(self, user: UserData) -> ColdStart:
        settings = replace(self.settings, data=user.images or self.settings.data)
        if user.seed is not None:
            settings = replace(settings, seed=user.seed)
        return replace(self, settings=settings)

    def check(self) -> None:
        check_images(self.settings.data, self.endless)
        check_rewards(self.settings.rewards, self.settings.backbones)

    def run(self, work: Assignment) -> None:
        settings = self.settings
        images = image_source(settings.data, settings.decoding, settings.seed, self.endless)
        check_same_files(images, work.folder)
        model = load_decoder_model(work, settings.lora_rank)
        reward = load_reward(
            settings.rewards, settings.backbones, model, settings.captioning.instruction
        )
        fit_to_model(
            ColdStartTask(model, reward, images, settings), work, settings.keep_checkpoints
        )


class ColdStartTask:
    """MM-DiT and projector of a UMM-1, for ``fit``."""

    name = "cold_start"

    def __init__(
        self, model: Any, reward: WeightedSum, images: ImageSource, config: ColdStartConfig
    ) -> None:
        check_paints_by_diffusion(model, self.name)
        check_settings(model, config.captioning, config.decoding)
        self.model, self.reward, self.images, self.config = model, reward, images, config
        self.fit_settings: FitSettings = ColdStartFit(
            config.num_steps,
            config.images_per_step,
            config.learning_rate,
            warmup_steps=config.warmup_steps,
            ema_decay=0.98,
            seed=config.seed,
            settings=json_ready({n: v for n, v in asdict(config).items() if n not in FREE}),
        )
        self.modules, self.shards = decoder_learning(model, config.lora_rank, config.shard)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        return self.loss_of(step, range(self.config.images_per_step))

    def loss_of(self, step: int, places: range) -> tuple[Tensor, dict[str, float]]:
        images = self.images.batch(step, self.config.images_per_step)
        own = images[slice_of(places)]
        return self._loss(own, self.config.captioning, step, places), {}

    def _loss(
        self, images: Sequence[Tensor], captioning: CaptionSettings, step: int, keys: range
    ) -> Tensor:
        draws: dict[str, Any] = {"seed": self.config.seed, "step": step, "keys": keys}
        with autocast(self.model.encoder.device, self.config.use_bf16):
            with torch.no_grad():
                texts = self.model.caption(images, captioning, **draws).texts
            reconstructions = paint_differentiably(self.model, texts, self.config.decoding, **draws)
        return (1 - self.reward(images, texts, reconstructions)).mean()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss of unseen images' captions, from fixed noise."""
        greedy = replace(self.config.captioning, temperature=0.0)
        images = self.images.probe(NUM_EVALUATED)
        loss = self._loss(images, greedy, step=0, keys=range(len(images)))
        return {"semantic_loss": loss.item()}

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


def paint_differentiably(
    model: LLMDiffusion,
    texts: list[str],
    decoding: DecodeSettings,
    *,
    seed: int = 0,
    step: int = 0,
    keys: range | None = None,
) -> Float[Tensor, "N 3 H W"]:
    """An image of each text, as ``generate`` paints it, with a gradient for whatever of the decoder
    learns."""
    decoder = model.decoder
    with torch.no_grad():
        states, mask = model.text_states(texts)
        states_of_negative = model.text_states([model.negative_prompt])
    negative = decoder.condition(*states_of_negative) if decoding.guidance_scale != 1 else None
    noise = normals(
        seed,
        step,
        keys or range(len(texts)),
        "decode",
        decoder.noise_shape(decoding.height, decoding.width),
    )
    sigmas, images = decoder.sigmas(decoding.num_steps, tuple(noise.shape[1:])), []
    groups = decoder.length_groups(mask)
    for group in groups:
        embeds = decoder.condition(states[group], mask[group])
        velocity = decoder.field(embeds, negative, decoding.guidance_scale)
        latents = sample_ode(_recomputed(velocity), noise[group.cpu()].to(states.device), sigmas)
        images.append(_recomputed(decoder.decode_latents)(latents))
    return torch.cat(images)[torch.cat(groups).argsort()]


def _recomputed(function: Any) -> Any:
    """The same function, whose activations are not kept but computed again for its gradient."""
    return lambda *tensors: checkpoint(function, *tensors, use_reentrant=False)
