"""UMM-1's decoder: projected LLM states condition Stable Diffusion 3's MM-DiT; its stock VAE makes
pixels.

    text → LLM → last hidden states [N L D] → projector → prompt_embeds [N T E]
    prompt_embeds [N T E], noise [N c h w] → ODE → VAE → images [N 3 H W]

arXiv 2509.09666: the projected sequence replaces SD3's text embeddings (CLIP and T5 tokens), and
the pooled condition is the CLIP-L + CLIP-bigG embedding of the *empty* prompt, a constant here.

SD3 attends to all text positions: it has no mask, so padding would change the picture with whatever
else is in the batch. There are two ways out. With ``text_length`` every text is padded by zeros to
this one length (how the tiny model is trained). Without (real checkpoints), texts are grouped by
length and there is no padding.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from uae.config import DecodeSettings
from uae.diffusion.policy import FlowContext, evaluate_path
from uae.diffusion.sampling import guided, sample_ode
from uae.diffusion.schedule import sampling_sigmas
from uae.diffusion.stochastic import Stochastic, sample_stochastic
from uae.models.connectors import Projector, projector_between
from uae.models.decoders import sd3_files
from uae.models.lora import ADAPTER, Adapters
from uae.models.storage import save_exactly
from uae.types import Evaluation, Rollout
from uae.utils.finite import require_finite
from uae.utils.progress import phase
from uae.utils.weights import SCHEDULER_CONFIG, load_part, load_pretrained

ATTENTION = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)


class SD3Decoder(nn.Module):
    """Text states and noise to images; all parts are the field's own classes."""

    pooled: Tensor

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        projector: Projector,
        pooled: Float[Tensor, " pooled_dim"],
        text_length: int | None = None,
    ) -> None:
        super().__init__()
        _check_widths(transformer, vae, projector, pooled)
        self.transformer, self.vae, self.scheduler, self.projector = (
            transformer,
            vae,
            scheduler,
            projector,
        )
        self.register_buffer("pooled", pooled)
        self.text_length = text_length
        self.adapters = Adapters(transformer)
        self._frozen_copy: Any = None
        self.is_whole = False
        """Trained fully since it was loaded: there is no base to name."""

    # --- text ---

    def condition(
        self, states: Float[Tensor, "N L D"], mask: Bool[Tensor, "N L"]
    ) -> Float[Tensor, "N T E"]:
        """Each text's projected states, first position first, then exact zeros up to
        ``text_length``.

        Padding may be on either side; it is never projected. Without ``text_length`` all texts must
        have one length (see ``length_groups``).
        """
        length = self._common_length(mask)
        row, position = mask.nonzero(as_tuple=True)
        target = mask.long().cumsum(1)[row, position] - 1
        projected = self.projector(states[row, position].to(self.projector.dtype))
        embeds = projected.new_zeros(len(states), length, projected.shape[-1])
        return embeds.index_put((row, target), projected)

    def _common_length(self, mask: Tensor) -> int:
        lengths = mask.sum(1)
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest == 0:
            raise ValueError(
                "expected at least one token in each text, got an empty one; "
                "a chat template gives some even to an empty caption"
            )
        if self.text_length is None and shortest != longest:
            raise ValueError(
                f"expected texts of one length, got {shortest} to {longest} tokens; SD3 has no "
                "text mask: group them by length_groups, or give the decoder a text_length"
            )
        if self.text_length is not None and longest > self.text_length:
            raise ValueError(
                f"expected texts of at most {self.text_length} tokens (this decoder's "
                f"text_length), got one of {longest}; cap the caption's new tokens lower"
            )
        return self.text_length or longest

    def length_groups(self, mask: Bool[Tensor, "N L"]) -> list[Tensor]:
        """Indices of texts that may share a batch: all of them with ``text_length``, else those of
        each length."""
        lengths = mask.sum(1)
        if self.text_length is not None:
            lengths = torch.full_like(lengths, self.text_length)
        return [(lengths == length).nonzero().flatten() for length in lengths.unique()]

    # --- latents ---

    def velocity(
        self,
        latents: Float[Tensor, "N c h w"],
        sigma: Float[Tensor, " N"],
        prompt_embeds: Float[Tensor, "N T E"],
    ) -> Float[Tensor, "N c h w"]:
        """The transformer's ``v_θ(x_σ, σ, c)`` in fp32, whatever it computes in."""
        dtype = self.transformer.dtype
        return self.transformer(
            hidden_states=latents.to(dtype),
            timestep=sigma * self.scheduler.config["num_train_timesteps"],
            encoder_hidden_states=prompt_embeds.to(dtype),
            pooled_projections=repeat(self.pooled.to(dtype), "d -> n d", n=len(latents)),
            return_dict=False,
        )[0].float()

    def generate(
        self,
        states: Float[Tensor, "N L D"],
        mask: Bool[Tensor, "N L"],
        noise: Float[Tensor, "M c h w"],
        num_steps: int,
        guidance_scale: float = 1.0,
        negative_states: Float[Tensor, "1 Ln D"] | None = None,
        micro_batch: int = 64,
    ) -> Float[Tensor, "M 3 H W"]:
        """Images in [0, 1] from texts and start noise, ``micro_batch`` at a time.

        M may be a multiple K of N: image ``m`` then shows text ``m // K``, which is projected once.
        negative_states: one sentence, unpadded, that guidance leads away from. Gradients flow
        unless disabled.
        """
        sigmas = sampling_sigmas(self.scheduler, num_steps)
        negative = self._negative(negative_states, guidance_scale)
        images, indices = [], []
        for part, embeds in self._batches(states, mask, len(noise), micro_batch):
            velocity = guided(self.velocity, embeds, negative, guidance_scale)
            images.append(self.decode_latents(sample_ode(velocity, noise[part], sigmas)))
            indices.append(part)
        return torch.cat(images)[torch.cat(indices).argsort()]

    @torch.no_grad()
    def sample(
        self,
        states: Float[Tensor, "N L D"],
        mask: Bool[Tensor, "N L"],
        noise: Float[Tensor, "M c h w"],
        draws: Callable[[Tensor], Tensor],
        settings: DecodeSettings,
        negative_states: Float[Tensor, "1 Ln D"] | None = None,
    ) -> tuple[Float[Tensor, "M 3 H W"], Rollout]:
        """As ``generate`` by random steps, and these as a rollout; ``draws``: image indices ``[m]``
        to standard normals ``[m, num_steps, c, h, w]``."""
        sigmas = sampling_sigmas(self.scheduler, settings.num_steps)
        assert settings.sampler != "ode"
        how = Stochastic(
            settings.sampler, settings.noise_level, settings.window_start, settings.window_size
        )
        window = how.is_random(sigmas).nonzero()[:, 0]
        if not len(window):
            raise ValueError(
                f"expected at least one random step in {settings.num_steps}, got {how}: nothing "
                "to learn"
            )
        first, end = int(window[0]), int(window[-1]) + 1
        negative = self._negative(negative_states, settings.guidance_scale)
        texts: list[Tensor] = []
        images, paths, log_probs, indices = [], [], [], []
        for part, embeds in self._batches(states, mask, len(noise), settings.micro_batch):
            velocity = guided(self.velocity, embeds, negative, settings.guidance_scale)
            path = sample_stochastic(velocity, noise[part], sigmas, how, draws(part))
            images.append(self.decode_latents(path.latents[:, -1]))
            paths.append(path.latents[:, first : end + 1])
            log_probs.append(path.log_probs[:, first:end])
            indices.append(part)
            texts += embeds
        back = torch.cat(indices).argsort()
        embeds_of = tuple(texts[i] for i in back.tolist())
        context = FlowContext(
            embeds_of,
            torch.arange(len(noise)),
            negative,
            settings.guidance_scale,
            sigmas[first : end + 1],
            how,
            settings.kl_form,
        )
        scored = torch.cat(log_probs)[back]
        rollout = Rollout(
            torch.cat(paths)[back], scored, torch.ones_like(scored, dtype=torch.bool), context
        )
        return torch.cat(images)[back], rollout

    def _batches(
        self, states: Tensor, mask: Tensor, num_images: int, micro_batch: int
    ) -> Iterator[tuple[Int[Tensor, " m"], Float[Tensor, "m T E"]]]:
        """Indices of images whose texts have one length, ``micro_batch`` at a time, and their
        texts' embeddings."""
        per_text = _images_per_text(len(states), num_images)
        with phase("painting", num_images, "images") as take:
            for group in self.length_groups(mask):
                embeds = self.condition(states[group], mask[group])
                of_text = torch.arange(len(group), device=group.device).repeat_interleave(per_text)
                index = (
                    group[:, None] * per_text + torch.arange(per_text, device=group.device)
                ).flatten()
                for part, text in zip(
                    index.split(micro_batch), of_text.split(micro_batch), strict=True
                ):
                    take(len(part))
                    yield part, embeds[text]
            take(0)

    def _negative(
        self, states: Float[Tensor, "1 Ln D"] | None, guidance_scale: float
    ) -> Tensor | None:
        if states is None or guidance_scale == 1:
            return None
        return self.condition(states, torch.ones_like(states[..., 0], dtype=torch.bool))

    # --- as a policy ---

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def named_trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The transformer's, or its LoRA's; none while it is frozen."""
        return {name: p for name, p in self.transformer.named_parameters() if p.requires_grad}

    def learn(self, lora_rank: int) -> None:
        """From now on, by LoRA, or fully at rank 0."""
        self.add_lora(lora_rank) if lora_rank else self.train_transformer()

    def train_transformer(self, *, with_reference: bool = True) -> None:
        """Full fine-tuning of the transformer alone; a frozen copy stays as the reference."""
        self.adapters.merge()
        self.transformer.requires_grad_(True)
        self.is_whole = True
        frozen = copy.deepcopy(self.transformer).requires_grad_(False) if with_reference else None
        object.__setattr__(self, "_frozen_copy", frozen)

    def add_lora(self, rank: int) -> None:
        """LoRA on the attention's projections, alpha twice the rank, Gaussian start (Flow-GRPO's
        SD3.5 recipe)."""
        object.__setattr__(self, "_frozen_copy", None)
        self.adapters.learn(rank, ATTENTION)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """In this context the transformer is as it was before training."""
        if self._frozen_copy is None:
            with self.adapters.only(self.adapters.before):
                yield
            return
        now, self.transformer = self.transformer, self._frozen_copy
        try:
            yield
        finally:
            self.transformer = now

    def evaluate(self, rollout: Rollout, *, with_kl: bool) -> Evaluation:
        """Log-probability of each random denoising step now, and the closed-form KL to the
        reference."""
        return evaluate_path(self.velocity, rollout, self.reference, with_kl=with_kl)

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """``(c, h, w)`` of the latents of a ``height x width`` image."""
        factor, config = self.downscale, self.transformer.config
        step, largest = (
            factor * config["patch_size"],
            factor * config["patch_size"] * config["pos_embed_max_size"],
        )
        for size in (height, width):
            if size % step or not 0 < size <= largest:
                raise ValueError(
                    f"expected height and width in multiples of {step} up to {largest} pixels, "
                    f"got {height}x{width}"
                )
        return config["in_channels"], height // factor, width // factor

    # --- pixels ---

    @property
    def downscale(self) -> int:
        """Pixels per latent, along a side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def encode_images(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N c h w"]:
        """Images in [0, 1] to scaled latents: the posterior's mean, so the same image has the same
        latents always."""
        scale, shift = self._latent_scale()
        posterior = self.vae.encode((images * 2 - 1).to(self.vae.dtype)).latent_dist  # type: ignore[union-attr]
        return (posterior.mean.float() - shift) * scale

    def decode_latents(self, latents: Float[Tensor, "N c h w"]) -> Float[Tensor, "N 3 H W"]:
        """Scaled latents to images in [0, 1]."""
        scale, shift = self._latent_scale()
        scaled: Any = (latents / scale + shift).to(self.vae.dtype)
        decoded = self.vae.decode(scaled, return_dict=False)[0]
        require_finite(decoded, "pixels")
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    def round_trip(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        """Images in [0, 1] to latents and back: the best that any caption could lead to."""
        return self.decode_latents(self.encode_images(images))

    def _latent_scale(self) -> tuple[float, float]:
        config = self.vae.config
        return config["scaling_factor"], config.get("shift_factor") or 0.0

    # --- files ---

    def save_pretrained(self, folder: Path | str, *, whole: bool = True) -> None:
        """Subfolders ``transformer vae scheduler projector``, beside the pooled embedding and the
        text length, and the transformer's adapters, unmerged, in ``adapter``; only these and the
        projector unless ``whole``."""
        folder = Path(folder)
        base = folder / "transformer" if whole else Path(self.transformer.config["_name_or_path"])
        parts: dict[str, Any] = {"projector": self.projector}
        if whole:
            parts |= {
                "transformer": self.adapters.without(),
                "vae": self.vae,
                "scheduler": self.scheduler,
            }
        for name, part in parts.items():
            part.register_to_config(
                _name_or_path=""
            )  # else the folder it was once loaded from is written too
            save_exactly(part, folder / name) if isinstance(
                part, nn.Module
            ) else part.save_pretrained(folder / name)
        if whole:
            sd3_files.save_pooled(folder, self.pooled)
            sd3_files.save_text_length(folder, self.text_length)
        self.adapters.save(folder / ADAPTER, base)

    def put_on(self, folder: Path) -> None:
        """What ``save_pretrained`` wrote of a decoder on this base."""
        projector = load_pretrained(Projector, folder / "projector")
        dtype = torch.promote_types(self.projector.dtype, projector.dtype)
        self.projector = projector.to(self.device, dtype)
        self.adapters.load(folder / ADAPTER)

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
        if (folder / "projector").is_dir():
            projector = load_pretrained(Projector, folder / "projector", dtype)
            _check_llm_width(projector, llm_width, folder)
        else:
            assert llm_width is not None
            warnings.warn(
                (
                    f"{source} has no projector: it starts untrained, and what is painted means "
                    "nothing until `uae train v3` has taught it, or projector/ is laid in the "
                    "decoder's folder"
                ),
                stacklevel=2,
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # untrained, but the same whenever a run is resumed
                projector = projector_between(llm_width, transformer.config["joint_attention_dim"])
        vae = load_pretrained(AutoencoderKL, folder / "vae", dtype)
        scheduler = load_part(
            FlowMatchEulerDiscreteScheduler, folder / "scheduler", SCHEDULER_CONFIG
        )
        pooled, text_length = sd3_files.load_pooled(folder), sd3_files.load_text_length(folder)
        decoder = cls(transformer, vae, scheduler, projector, pooled, text_length)  # type: ignore[arg-type]
        if dtype is not None:
            decoder = decoder.to(dtype)
        decoder.adapters.load(folder / ADAPTER)
        return decoder


def _images_per_text(num_texts: int, num_images: int) -> int:
    if num_texts == 0 or num_images == 0 or num_images % num_texts:
        raise ValueError(
            f"expected noise for the same number of images of each text, got {num_images} for "
            f"{num_texts}"
        )
    return num_images // num_texts


def _check_widths(
    transformer: SD3Transformer2DModel, vae: AutoencoderKL, projector: Projector, pooled: Tensor
) -> None:
    """The parts fit together."""
    config = transformer.config
    for part, got, wanted in (
        ("the projector's output", projector.config["out_features"], config["joint_attention_dim"]),
        ("the pooled embedding", len(pooled), config["pooled_projection_dim"]),
        ("the VAE's latent channels", vae.config["latent_channels"], config["in_channels"]),
    ):
        if got != wanted:
            raise ValueError(
                f"expected {part} to be {wanted} wide, as this transformer takes it, got {got}; "
                "take all parts from one checkpoint"
            )


def _check_llm_width(projector: Projector, llm_width: int | None, folder: Path) -> None:
    got = projector.config["in_features"]
    if llm_width not in (None, got):
        raise ValueError(
            f"expected a projector from the LLM's width {llm_width}, the one in {folder} takes "
            f"{got}; use the LLM that this decoder was trained with"
        )
