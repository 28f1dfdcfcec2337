"""Long-caption pretraining: the decoder learns to read what a language model says of an image at
length.

    loss = ‖v_θ(x_σ, σ, c) − (ε − x)‖²,  c = projector(LLM(caption))

Source: arXiv 2509.09666.

The LLM and the VAE are frozen; projector and MM-DiT (fully, or by LoRA) learn. σ is logit-normal
with the scheduler's shift and all levels weigh alike, as SD3 was trained (arXiv 2403.03206). Some
captions give way to the model's negative prompt, so that guidance has something to lead away from.
Images and texts are encoded one by one: a sample's latents and states then do not depend on its
batch, and are the same bits whether cached or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from uae.data.buckets import CaptionBatches, CaptionedImage, aspect_buckets
from uae.data.captions import check_pyarrow, find_shards
from uae.data.latents import Encoded, LatentCache, fingerprint
from uae.diffusion.schedule import training_sigmas
from uae.models.decoders.flow import FlowDecoder
from uae.models.llm_diffusion import LLMDiffusion
from uae.stages.base import Assignment, UserData
from uae.stages.fit import FitSettings
from uae.stages.supervised import (
    SupervisedShard,
    check_paints_by_diffusion,
    decoder_learning,
    fit_to_model,
    load_decoder_model,
)
from uae.utils.device import autocast
from uae.utils.processes import slice_of
from uae.utils.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, check_ranges
from uae.utils.seed import normals, uniforms

EVAL_SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)
RANGES = {
    **dict.fromkeys(
        ("num_steps", "batch_size", "resolution", "pool_size", "num_held_out", "keep_checkpoints"),
        AT_LEAST_1,
    ),
    **dict.fromkeys(("lora_rank", "guidance_scale"), AT_LEAST_0),
    "learning_rate": ABOVE_0,
    "caption_dropout": BELOW_1,
}


@dataclass(frozen=True)
class LongCaptionConfig:
    """What the decoder is pretrained on, and how."""

    data: tuple[str, ...]
    """Parquet files, WebDataset tars, or folders of these or with a ``metadata.jsonl``."""
    num_steps: int = 10_000
    """Optimiser steps in all."""
    batch_size: int = 8
    """Pairs per step."""
    learning_rate: float = 1e-4
    """Peak, of projector and transformer."""
    resolution: int = 512
    """Images are resized to about this many pixels squared, each to the size of nearest aspect."""
    pool_size: int = 1024
    """Stored pairs that the next batch is drawn from; checkpoints hold them."""
    lora_rank: int = 0
    """Rank of LoRA on the transformer's attention (alpha is twice the rank); 0 trains it fully."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the model's negative prompt."""
    guidance_scale: float | None = None
    """Classifier-free guidance that the model paints with from now on, as it has learnt what
    guidance leads away from; None leaves its own."""
    cache: str | None = None
    """Folder where latents and text states are kept for the next pass, about 2 MB a pair; None
    computes them anew."""
    keep_checkpoints: int = 2
    """How many of the last checkpoints stay."""
    shard: SupervisedShard = "nothing"
    """What several processes keep a part each of, block by block (FSDP2): nothing, or the
    transformer that learns, with its moments and its average."""
    num_held_out: int = 64
    """Pairs kept out of training to measure the loss on."""
    seed: int = 0
    """Of data order, noise, noise levels and dropped captions."""

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)


@dataclass(frozen=True)
class LongCaptionFit(FitSettings):
    """With the settings that a resumed run must share beside the data's own."""

    caption_dropout: float = 0.1
    """As in ``LongCaptionConfig``."""
    lora_rank: int = 0
    """As in ``LongCaptionConfig``."""


@dataclass(frozen=True)
class LongCaptions:
    """The stage."""

    settings: LongCaptionConfig

    def given(self, user: UserData) -> LongCaptions:
        """On the user's captions; the seed stays, so that runs of several seeds may share it."""
        data = user.captions or self.settings.data
        return replace(self, settings=replace(self.settings, data=data))

    def check(self) -> None:
        check_pyarrow()
        if not self.settings.data:
            raise ValueError(
                "expected captioned images for long-caption pretraining: give --captions "
                "(parquet, tar or a folder with metadata.jsonl); `uae data longcap` makes them"
            )
        find_shards(self.settings.data)

    def run(self, work: Assignment) -> None:
        model = load_decoder_model(work, self.settings.lora_rank)
        fit_to_model(LongCaptionTask(model, self.settings), work, self.settings.keep_checkpoints)


class LongCaptionTask:
    """Flow matching on the frozen LLM's states of streamed captions; ``fit`` trains it."""

    name = "long_captions"

    def __init__(self, model: LLMDiffusion, config: LongCaptionConfig) -> None:
        check_paints_by_diffusion(model, self.name)
        self.model, self.config = model, config
        if config.guidance_scale is not None:
            model.decoding = replace(model.decoding, guidance_scale=config.guidance_scale)
        self.fit_settings: FitSettings = LongCaptionFit(
            num_steps=config.num_steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            warmup_steps=min(200, config.num_steps // 10),
            seed=config.seed,
            caption_dropout=config.caption_dropout,
            lora_rank=config.lora_rank,
        )
        self.data = CaptionBatches(
            config.data,
            _buckets(model.decoder, config.resolution),
            config.batch_size,
            pool_size=config.pool_size,
            num_held_out=config.num_held_out,
            seed=config.seed,
        )
        self.cache = LatentCache(config.cache, _fingerprint(model)) if config.cache else None
        self.modules, self.shards = decoder_learning(model, config.lora_rank, config.shard)
        self._dropped = self._text_states(model.negative_prompt)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        return self.loss_of(step, range(self.config.batch_size))

    def loss_of(self, step: int, places: range) -> tuple[Tensor, dict[str, float]]:
        """Every process reads the whole batch, so that they agree on the place in the stream."""
        samples = self.data.next_batch()[slice_of(places)]
        encoded = self._drop_captions([self._encode(each) for each in samples], step, places)
        latents = torch.stack([each.latents for each in encoded])
        noise = normals(self.config.seed, step, places, "noise", latents.shape[1:])
        shift = self.model.decoder.scheduler.config["shift"]
        levels = normals(self.config.seed, step, places, "sigma", (1,))[:, 0]
        sigmas = training_sigmas(levels, shift)
        stream = self.data.stream
        cut = len(self.model.too_long([sample.caption for sample in samples])) / len(samples)
        metrics = {
            "data/passes": float(stream.pass_number),
            "data/skipped": float(stream.num_skipped),
            "data/cut": cut,
        }
        return flow_loss(
            self.model.decoder, latents, [each.states for each in encoded], sigmas, noise
        ), metrics

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss on held-out pairs at fixed noise levels, from fixed noise."""
        sigmas = torch.tensor(EVAL_SIGMAS)
        losses = torch.stack(
            [self._losses_at(sigmas, index) for index in range(len(self.data.held_out))]
        ).mean(0)
        each = {
            f"flow_loss_at_{sigma}": loss
            for sigma, loss in zip(EVAL_SIGMAS, losses.tolist(), strict=True)
        }
        return {"flow_loss": losses.mean().item(), **each}

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass

    def _losses_at(self, sigmas: Float[Tensor, " S"], index: int) -> Float[Tensor, " S"]:
        """Of one held-out pair at each noise level."""
        latents, states = self._encode(self.data.held_out[index])
        noise = normals(self.config.seed, 0, [index], "held out", latents.shape)
        decoder = self.model.decoder
        return torch.stack(
            [
                flow_loss(decoder, latents[None], [states], sigma[None], noise).cpu()
                for sigma in sigmas
            ]
        )

    def _drop_captions(self, encoded: list[Encoded], step: int, places: range) -> list[Encoded]:
        draws = uniforms(self.config.seed, step, places, "caption dropout", 1)[:, 0].tolist()
        return [
            each._replace(states=self._dropped) if draw < self.config.caption_dropout else each
            for draw, each in zip(draws, encoded, strict=True)
        ]

    @torch.no_grad()
    def _encode(self, sample: CaptionedImage) -> Encoded:
        """From the cache if it is there."""
        encoded = self.cache.load(sample.digest) if self.cache else None
        if encoded is None:
            decoder = self.model.decoder
            latents = decoder.encode_images(sample.image[None].to(decoder.device))[0]
            encoded = Encoded(latents.cpu(), self._text_states(sample.caption))
            if self.cache:
                self.cache.save(sample.digest, encoded)
        return encoded

    @torch.no_grad()
    def _text_states(self, text: str) -> Float[Tensor, "L D"]:
        return self.model.text_states([text])[0][0].cpu()


def flow_loss(
    decoder: FlowDecoder,
    latents: Float[Tensor, "N c h w"],
    states: list[Tensor],
    sigmas: Float[Tensor, " N"],
    noise: Float[Tensor, "N c h w"],
) -> Float[Tensor, ""]:
    """Of samples whose texts ``[L_n, D]`` may differ in length, see ``FlowDecoder``."""
    device = decoder.device
    latents, sigmas, noise = latents.to(device), sigmas.to(device), noise.to(device)
    padded = pad_sequence(states, batch_first=True).to(device)
    lengths = torch.tensor([len(each) for each in states], device=device)
    mask = torch.arange(padded.shape[1], device=device) < lengths[:, None]
    with autocast(device, use_bf16=device.type == "cuda"):
        return decoder.matching_loss(latents, padded, mask, sigmas, noise)


def _buckets(decoder: FlowDecoder, resolution: int) -> tuple[tuple[int, int], ...]:
    """Multiples of 64 pixels where the resolution is one, else of what the decoder can paint."""
    canvas = decoder.canvas
    common = math.lcm(canvas.step, 64)
    return aspect_buckets(
        resolution, canvas.step if resolution % common else common, canvas.largest
    )


def _fingerprint(model: LLMDiffusion) -> str:
    """Of all that decides latents and text states."""
    encoder, vae = model.encoder, model.decoder.vae
    scale = vae.config["scaling_factor"], vae.config.get("shift_factor")
    weights = {**encoder.language_model.state_dict(), **vae.state_dict()}
    return fingerprint(weights, str(encoder.tokenizer.chat_template), str(scale))
