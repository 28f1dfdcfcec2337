"""The line between ``FlowDecoder`` and SD3: Qwen-Image and FLUX, small, as subclasses of a few
lines each, sample, score, differentiate, and paint what their pipelines do.

What they need and SD3 does not: a text mask, packed latents, a VAE with an axis of time, levels of
noise that depend on the size, another rule of guidance, and guidance as an input.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from einops import rearrange, repeat

from uae.config import DecodeSettings
from uae.diffusion.texts import TextEmbeds
from uae.models.connectors import projector_between
from uae.models.decoders.canvas import Canvas
from uae.models.decoders.flow import FlowDecoder
from uae.types import Policy

LLM_WIDTH, TEXT_WIDTH, POOLED_WIDTH = 24, 20, 14
SDE = DecodeSettings(num_steps=4, sampler="sde", height=16, width=24, micro_batch=3)
SETTINGS = {"plain": SDE, "guided": replace(SDE, guidance_scale=3.0)}


def pack(latents: torch.Tensor) -> torch.Tensor:
    return rearrange(latents, "n c (h y) (w x) -> n (h w) (c y x)", y=2, x=2)


def unpack(packed: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    height = like.shape[2] // 2
    return rearrange(packed, "n (h w) (c y x) -> n c (h y) (w x)", h=height, y=2, x=2)


class PackedDecoder(FlowDecoder):
    """Latents in patches of 2 × 2, and levels that depend on their number."""

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...]) -> torch.Tensor:
        scheduler: Any = copy.deepcopy(self.scheduler)
        mu = calculate_shift(latent_shape[1] * latent_shape[2] // 4)
        even = torch.linspace(1, 1 / num_steps, num_steps).tolist()
        scheduler.set_timesteps(sigmas=even, mu=mu)
        return scheduler.sigmas

    @property
    def canvas(self) -> Canvas:
        return Canvas(self.transformer.config["in_channels"] // 4, 2, 4, 64)

    @property
    def published_decoding(self) -> DecodeSettings:
        return DecodeSettings(50, guidance_scale=4.0)


class QwenImageDecoder(PackedDecoder):
    has_text_mask = True

    def velocity(
        self, latents: torch.Tensor, sigma: torch.Tensor, texts: TextEmbeds
    ) -> torch.Tensor:
        grid = (1, latents.shape[2] // 2, latents.shape[3] // 2)
        packed = self.transformer(
            hidden_states=pack(latents),
            timestep=sigma,
            encoder_hidden_states=texts.embeds,
            encoder_hidden_states_mask=texts.mask,
            img_shapes=[[grid]] * len(latents),
            return_dict=False,
        )[0]
        return unpack(packed, latents)

    @staticmethod
    def guide(
        unconditional: torch.Tensor, conditional: torch.Tensor, guidance_scale: float
    ) -> torch.Tensor:
        """Of each patch's conditional length."""
        both = pack(FlowDecoder.guide(unconditional, conditional, guidance_scale))
        length = pack(conditional).norm(dim=-1, keepdim=True)
        return unpack(both * length / both.norm(dim=-1, keepdim=True), conditional)

    def to_latents(self, pixels: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics()
        return (self.vae.encode(pixels[:, :, None]).latent_dist.mean[:, :, 0].float() - mean) / std

    def to_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics()
        scaled = (latents * std + mean).to(self.vae.dtype)
        return self.vae.decode(scaled[:, :, None], return_dict=False)[0][:, :, 0]

    def _statistics(self) -> list[torch.Tensor]:
        names = "latents_mean", "latents_std"
        return [torch.tensor(self.vae.config[name])[:, None, None] for name in names]


class FluxDecoder(PackedDecoder):
    """Distilled: it is told the guidance scale, and needs no negative text."""

    pooled = torch.linspace(-1, 1, POOLED_WIDTH)

    def velocity(
        self,
        latents: torch.Tensor,
        sigma: torch.Tensor,
        texts: TextEmbeds,
        guidance_scale: float = 1.0,
    ) -> torch.Tensor:
        num, _, height, width = latents.shape
        rows = torch.arange(height // 2.0)[:, None].expand(height // 2, width // 2)
        columns = torch.arange(width // 2.0)[None].expand(height // 2, width // 2)
        ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
        packed = self.transformer(
            hidden_states=pack(latents),
            timestep=sigma,
            guidance=torch.full((num,), guidance_scale),
            encoder_hidden_states=texts.embeds,
            pooled_projections=repeat(self.pooled, "d -> n d", n=num),
            txt_ids=torch.zeros(texts.embeds.shape[1], 3),
            img_ids=ids,
            return_dict=False,
        )[0]
        return unpack(packed, latents)

    def field(
        self,
        texts: TextEmbeds,
        negative: TextEmbeds | None,
        guidance_scale: float,
        *,
        detach_unconditional: bool = False,
    ) -> Any:
        return lambda latents, sigma: self.velocity(latents, sigma, texts, guidance_scale)

    def to_latents(self, pixels: torch.Tensor) -> torch.Tensor:
        return (self.vae.encode(pixels).latent_dist.mean - 0.1) * 1.5

    def to_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents / 1.5 + 0.1, return_dict=False)[0]


def build_qwen_image() -> QwenImageDecoder:
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[-0.1, 0.1, 0.2, 0.0],
        latents_std=[1.5, 0.8, 1.2, 1.0],
    )
    return QwenImageDecoder(transformer, vae, scheduler(), projector())


def build_flux() -> FluxDecoder:
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),  # type: ignore[arg-type]
        down_block_types=("DownEncoderBlock2D",) * 2,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * 2,  # type: ignore[arg-type]
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.5,
        shift_factor=0.1,
    )
    return FluxDecoder(transformer, vae, scheduler(), projector())


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def projector():
    return projector_between(LLM_WIDTH, TEXT_WIDTH)


BUILDERS = {"Qwen-Image": build_qwen_image, "FLUX": build_flux}


@pytest.fixture(params=BUILDERS)
def decoder(request: pytest.FixtureRequest) -> FlowDecoder:
    torch.manual_seed(0)
    return BUILDERS[request.param]().eval().requires_grad_(False)


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Four texts of 3, 5, 5 and 7 tokens, and padding that must not matter."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.arange(7)[None] < torch.tensor([3, 5, 5, 7])[:, None]
    return torch.randn(4, 7, LLM_WIDTH, generator=generator), mask


def sample(decoder: FlowDecoder, settings: DecodeSettings) -> tuple[torch.Tensor, Any]:
    states, mask = texts()
    shape = decoder.noise_shape(settings.height, settings.width)
    noise = torch.randn(8, *shape, generator=torch.Generator().manual_seed(3))
    draws = torch.randn(8, 4, *shape, generator=torch.Generator().manual_seed(4))
    return decoder.sample(states, mask, noise, draws.__getitem__, settings, states[3:, :6])


@torch.no_grad()
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_pixels_equal_the_pipelines(decoder: FlowDecoder, guidance_scale: float):
    """Texts of several lengths in one batch, where the network masks them."""
    states, mask = texts()
    if not decoder.has_text_mask:
        states, mask = states[1:3, :5], mask[1:3, :5]
    noise = torch.randn(len(states), *decoder.noise_shape(16, 24))
    negative = torch.randn(1, 4, LLM_WIDTH)
    conditions = decoder.condition(states, mask)
    options: dict[str, Any] = {
        "prompt_embeds": conditions.embeds,
        "latents": pack(noise),
        "height": 16,
        "width": 24,
        "num_inference_steps": 5,
        "output_type": "pt",
    }
    parts = {
        "transformer": decoder.transformer,
        "vae": decoder.vae,
        "scheduler": decoder.scheduler,
        "text_encoder": None,
        "tokenizer": None,
    }
    if isinstance(decoder, QwenImageDecoder):
        pipeline: Any = QwenImagePipeline(**parts)  # type: ignore[arg-type]
        whole = torch.ones(1, 4, dtype=torch.bool)
        away = decoder.condition(negative, whole).repeated(len(states))
        options |= {
            "prompt_embeds_mask": conditions.mask,
            "negative_prompt_embeds": away.embeds,
            "negative_prompt_embeds_mask": away.mask,
            "true_cfg_scale": guidance_scale,
        }
    else:
        pipeline = FluxPipeline(**parts, text_encoder_2=None, tokenizer_2=None)
        options |= {
            "pooled_prompt_embeds": FluxDecoder.pooled.expand(len(states), -1),
            "guidance_scale": guidance_scale,
        }
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(**options).images
    images = decoder.generate(states, mask, noise, 5, guidance_scale, negative)
    assert expected.std() > 0.01
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch(decoder: FlowDecoder):
    states, mask = texts()
    noise = torch.randn(4, *decoder.noise_shape(16, 24))
    together = decoder.generate(states, mask, noise, 3, 2.0, states[3:, :6])
    assert len(decoder.length_groups(mask)) == (1 if decoder.has_text_mask else 3)
    for n, length in enumerate([3, 5, 5, 7]):
        row = slice(n, n + 1)
        alone = decoder.generate(
            states[row, :length], mask[row, :length], noise[row], 3, 2.0, states[3:, :6]
        )
        torch.testing.assert_close(alone[0], together[n], atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_what_was_sampled_is_scored_the_same_and_learns(
    decoder: FlowDecoder, settings: str, lora_rank: int
):
    decoder.learn(lora_rank)
    assert isinstance(decoder, Policy)
    images, rollout = sample(decoder, SETTINGS[settings])
    assert images.shape == (8, 3, 16, 24) and images.isfinite().all()
    scored = decoder.evaluate(rollout, with_kl=True)
    torch.testing.assert_close(scored.log_probs, rollout.log_probs, atol=1e-5, rtol=1e-5)
    assert scored.kl is not None and scored.kl.abs().max() < 1e-8
    part = torch.tensor([6, 1, 3])
    alone = decoder.evaluate(rollout.select(part), with_kl=False).log_probs
    torch.testing.assert_close(alone, rollout.log_probs[part], atol=1e-5, rtol=1e-5)

    scored.log_probs.mean().backward()
    learning = decoder.named_trainable_parameters()
    with torch.no_grad():
        grads = {name: p.grad for name, p in learning.items() if p.grad is not None}
        length = torch.nn.utils.get_total_norm(grads.values())
        for name, grad in grads.items():  # a step that is seen beside rounding
            learning[name].add_(0.1 * grad / length)
        after = decoder.evaluate(rollout, with_kl=True)
    assert after.log_probs.mean() > scored.log_probs.mean()
    assert after.kl is not None and after.kl.max() > 0


@torch.no_grad()
def test_images_to_latents_and_back(decoder: FlowDecoder):
    images = torch.rand(2, 3, 16, 24)
    latents = decoder.encode_images(images)
    assert latents.shape == (2, *decoder.noise_shape(16, 24)) and latents.dtype == torch.float32
    assert decoder.round_trip(images).shape == images.shape
