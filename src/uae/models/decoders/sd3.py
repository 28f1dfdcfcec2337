"""UMM-1's decoder: projected LLM states condition Stable Diffusion 3's MM-DiT; its stock VAE makes
pixels.

arXiv 2509.09666: the projected sequence replaces SD3's text embeddings (CLIP and T5 tokens), and
the pooled condition is the CLIP-L + CLIP-bigG embedding of the *empty* prompt, a constant here.

SD3 attends to all text positions: it has no mask, so padding would change the picture with whatever
else is in the batch. There are two ways out. With ``text_length`` every text is padded by zeros to
this one length (how the tiny model is trained). Without (real checkpoints), texts are grouped by
length and there is no padding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from uae.config import DecodeSettings
from uae.diffusion.texts import TextEmbeds
from uae.models.connectors import Connector, load_connector
from uae.models.decoders import sd3_files
from uae.models.decoders.canvas import Canvas
from uae.models.decoders.flow import FlowDecoder
from uae.models.lora import ADAPTER
from uae.utils.weights import SCHEDULER_CONFIG, load_part, load_pretrained


class SD3Decoder(FlowDecoder):
    """Stable Diffusion 3 and 3.5."""

    pooled: Tensor

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        projector: Connector,
        pooled: Float[Tensor, " pooled_dim"],
        text_length: int | None = None,
    ) -> None:
        _check_widths(transformer, vae, projector, pooled)
        super().__init__(transformer, vae, scheduler, projector, text_length)
        self.register_buffer("pooled", pooled)

    def velocity(
        self, latents: Float[Tensor, "N c h w"], sigma: Float[Tensor, " N"], texts: TextEmbeds
    ) -> Float[Tensor, "N c h w"]:
        dtype = self.transformer.dtype
        return self.transformer(
            hidden_states=latents.to(dtype),
            timestep=sigma * self.scheduler.config["num_train_timesteps"],
            encoder_hidden_states=texts.embeds.to(dtype),
            pooled_projections=repeat(self.pooled.to(dtype), "d -> n d", n=len(latents)),
            return_dict=False,
        )[0].float()

    @property
    def canvas(self) -> Canvas:
        config = self.transformer.config
        downscale = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        step = downscale * config["patch_size"]
        return Canvas(config["in_channels"], downscale, step, step * config["pos_embed_max_size"])

    @property
    def published_decoding(self) -> DecodeSettings:
        """The paper's: 40 steps, guidance 5, at the size the transformer was made for."""
        size = self.canvas.downscale * self.transformer.config["sample_size"]
        return DecodeSettings(40, guidance_scale=5.0, height=size, width=size, micro_batch=4)

    def to_latents(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N c h w"]:
        scale, shift = self._latent_scale()
        return (self.vae.encode(pixels).latent_dist.mean.float() - shift) * scale

    def to_pixels(self, latents: Float[Tensor, "N c h w"]) -> Float[Tensor, "N 3 H W"]:
        scale, shift = self._latent_scale()
        scaled: Any = (latents / scale + shift).to(self.vae.dtype)
        return self.vae.decode(scaled, return_dict=False)[0]

    def _latent_scale(self) -> tuple[float, float]:
        config = self.vae.config
        return config["scaling_factor"], config.get("shift_factor") or 0.0

    def save_extras(self, folder: Path) -> None:
        """The pooled embedding and the text length."""
        sd3_files.save_pooled(folder, self.pooled)
        sd3_files.save_text_length(folder, self.text_length)

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        *,
        llm_width: int | None = None,
        dtype: torch.dtype | None = torch.float32,
    ) -> SD3Decoder:
        """What ``save_pretrained`` wrote, or a Stable Diffusion 3 checkpoint in diffusers' layout;
        folder or hub id.

        llm_width: width of the LLM's states; starts a new projector if the checkpoint has none, as
        stock SD3. dtype: of all parts; None leaves each as it is stored.
        """
        folder = sd3_files.fetch_decoder(source, needs_projector=llm_width is None)
        transformer = load_pretrained(SD3Transformer2DModel, folder / "transformer", dtype)
        text_width = transformer.config["joint_attention_dim"]
        projector = load_connector(folder, llm_width, text_width, dtype)
        decoder = cls(
            transformer,
            load_pretrained(AutoencoderKL, folder / "vae", dtype),
            load_part(FlowMatchEulerDiscreteScheduler, folder / "scheduler", SCHEDULER_CONFIG),
            projector,
            sd3_files.load_pooled(folder),
            sd3_files.load_text_length(folder),
        )
        if dtype is not None:
            decoder = decoder.to(dtype)
        decoder.adapters.load(folder / ADAPTER)
        return decoder


def _check_widths(
    transformer: SD3Transformer2DModel, vae: AutoencoderKL, projector: Connector, pooled: Tensor
) -> None:
    """The parts fit together."""
    config = transformer.config
    for part, width, expected in (
        ("the projector's output", projector.out_width, config["joint_attention_dim"]),
        ("the pooled embedding", len(pooled), config["pooled_projection_dim"]),
        ("the VAE's latent channels", vae.config["latent_channels"], config["in_channels"]),
    ):
        if width != expected:
            raise ValueError(
                f"expected {part} to be {expected} wide, as this transformer takes it, got {width};"
                " take all parts from one checkpoint"
            )
