"""What all flow-matching decoders share: text states and start noise to images, as a policy.

    states [N L D] → connector → text embeddings [N T E]
    text embeddings, noise [N c h w] → ODE or random steps → VAE → images [N 3 H W]

A decoder says its velocity, the shape of its latents, how its VAE scales them, and its files. What
is between stays here: texts and which of them share a batch, micro-batches, samplers, scoring,
what learns and its reference.

Latents are ``[N c h w]`` everywhere: a network that takes packed ones packs them in its
``velocity``. So does a VAE with an axis of time in ``to_latents`` and ``to_pixels``. A network that
is told the guidance scale instead of running twice overrides ``field``; levels of noise that depend
on the size of the image, ``sigmas``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from jaxtyping import Bool, Float, Int
from torch import Tensor

from uae.config import DecodeSettings
from uae.diffusion.loss import flow_matching_loss
from uae.diffusion.policy import FlowContext, Weights, evaluate_path, velocity_at
from uae.diffusion.sampling import Velocity, extrapolate, guided, sample_ode
from uae.diffusion.schedule import add_noise, sampling_sigmas
from uae.diffusion.stochastic import Stochastic, sample_stochastic
from uae.diffusion.texts import TextEmbeds
from uae.models.connectors import FOLDER, Connector
from uae.models.decoders.canvas import Canvas
from uae.models.decoders.learner import TransformerLearner
from uae.models.decoders.text import TextConditioned
from uae.models.lora import ADAPTER
from uae.models.storage import save_exactly
from uae.types import Evaluation, Rollout
from uae.utils.finite import require_finite
from uae.utils.progress import phase
from uae.utils.weights import load_pretrained


class Steps(NamedTuple):
    """The steps that a rollout keeps."""

    sigmas: Tensor
    """Levels of noise, one more than there are steps."""
    stochastic: Stochastic
    settings: DecodeSettings
    negative: TextEmbeds | None
    """What guidance leads away from."""


class Walk(NamedTuple):
    """From start noise to finished latents, of one batch."""

    finished: Float[Tensor, "m c h w"]
    actions: Tensor
    """As ``Rollout`` has them."""
    log_probs: Float[Tensor, "m T"]


class FlowDecoder(TransformerLearner, TextConditioned, ABC):
    """Text states and noise to images; all parts are the field's own classes."""

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        scheduler: FlowMatchEulerDiscreteScheduler,
        projector: Connector,
        text_length: int | None = None,
    ) -> None:
        """text_length: tokens of the longest text that it reads; without a text mask all texts are
        padded by zeros to it. None: texts of any length."""
        super().__init__(transformer)
        self.vae, self.scheduler, self.projector = vae, scheduler, projector
        self.text_length = text_length

    # --- what a decoder says of itself -----------------------------------------------------------

    @abstractmethod
    def velocity(
        self, latents: Float[Tensor, "N c h w"], sigma: Float[Tensor, " N"], texts: TextEmbeds
    ) -> Float[Tensor, "N c h w"]:
        """The transformer's ``v_θ(x_σ, σ, c)`` in fp32, whatever it computes in."""

    @property
    @abstractmethod
    def canvas(self) -> Canvas:
        """The pictures it can paint."""

    @property
    @abstractmethod
    def published_decoding(self) -> DecodeSettings:
        """How it paints where nothing else is said."""

    @abstractmethod
    def to_latents(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N c h w"]:
        """Pixels in [-1, 1], in the VAE's dtype, to scaled latents in fp32: the posterior's mean,
        so the same image has the same latents always."""

    @abstractmethod
    def to_pixels(self, latents: Float[Tensor, "N c h w"]) -> Float[Tensor, "N 3 H W"]:
        """Scaled latents to pixels about [-1, 1]."""

    def save_extras(self, folder: Path) -> None:
        """What lies beside its models and scheduler."""

    def sigmas(
        self, num_steps: int, latent_shape: tuple[int, ...]
    ) -> Float[Tensor, " steps_plus_1"]:
        """The levels that latents ``[c, h, w]`` are denoised at."""
        return sampling_sigmas(self.scheduler, num_steps)

    @staticmethod
    def guide(unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
        """Both velocities as one."""
        return extrapolate(unconditional, conditional, guidance_scale)

    def field(
        self,
        texts: TextEmbeds,
        negative: TextEmbeds | None,
        guidance_scale: float,
        *,
        detach_unconditional: bool = False,
    ) -> Velocity:
        """The velocity under these texts, led away from the negative one."""
        return guided(
            self.velocity,
            texts,
            negative,
            guidance_scale,
            guide=self.guide,
            detach_unconditional=detach_unconditional,
        )

    # --- sampling --------------------------------------------------------------------------------

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

        M may be a multiple K of N: image ``m`` then shows text ``m // K``, which is connected once.
        negative_states: one sentence, unpadded, that guidance leads away from. Gradients flow
        unless disabled.
        """
        sigmas = self.sigmas(num_steps, tuple(noise.shape[1:]))
        negative = self.condition_negative(negative_states, guidance_scale)
        images, indices = [], []
        for part, texts in self._batches(states, mask, len(noise), micro_batch):
            velocity = self.field(texts, negative, guidance_scale)
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
        sigmas = self.sigmas(settings.num_steps, tuple(noise.shape[1:]))
        stochastic, first, end = _random_window(settings, sigmas)
        negative = self.condition_negative(negative_states, settings.guidance_scale)

        def walk(index: Tensor, texts: TextEmbeds) -> Walk:
            velocity = self.field(texts, negative, settings.guidance_scale)
            path = sample_stochastic(velocity, noise[index], sigmas, stochastic, draws(index))
            steps = path.latents[:, first : end + 1], path.log_probs[:, first:end]
            return Walk(path.latents[:, -1], *steps)

        window = Steps(sigmas[first : end + 1], stochastic, settings, negative)
        return self._roll_out(states, mask, len(noise), window, walk)

    @torch.no_grad()
    def generate_kept(
        self,
        states: Float[Tensor, "N L D"],
        mask: Bool[Tensor, "N L"],
        noise: Float[Tensor, "M c h w"],
        settings: DecodeSettings,
        negative_states: Float[Tensor, "1 Ln D"] | None = None,
    ) -> tuple[Float[Tensor, "M 3 H W"], Rollout]:
        """As ``generate``, and finished latents, in fp32, as a rollout of no actions: no step has a
        probability."""
        sigmas = self.sigmas(settings.num_steps, tuple(noise.shape[1:]))
        negative = self.condition_negative(negative_states, settings.guidance_scale)

        def walk(index: Tensor, texts: TextEmbeds) -> Walk:
            velocity = self.field(texts, negative, settings.guidance_scale)
            latents = sample_ode(velocity, noise[index], sigmas)
            return Walk(latents, latents, torch.zeros(len(index), 0, device=noise.device))

        no_window = Steps(sigmas, Stochastic(noise_level=0.0), settings, negative)
        return self._roll_out(states, mask, len(noise), no_window, walk)

    def _roll_out(
        self,
        states: Tensor,
        mask: Tensor,
        num_images: int,
        steps: Steps,
        walk: Callable[[Tensor, TextEmbeds], Walk],
    ) -> tuple[Tensor, Rollout]:
        """Images, and what ``walk`` did from their start noise, in the order of the noise."""
        walks, images, indices, rows = [], [], [], []
        for index, texts in self._batches(states, mask, num_images, steps.settings.micro_batch):
            walks.append(walk(index, texts))
            images.append(self.decode_latents(walks[-1].finished))
            indices.append(index)
            rows += texts.rows()
        back = torch.cat(indices).argsort()
        context = FlowContext(
            tuple(rows[i] for i in back.tolist()),
            torch.arange(num_images),
            steps.negative,
            1.0 if steps.negative is None else steps.settings.guidance_scale,
            steps.sigmas,
            steps.stochastic,
            steps.settings.kl_form,
            self.has_text_mask,
        )
        log_probs = torch.cat([each.log_probs for each in walks])[back]
        actions = torch.cat([each.actions for each in walks])[back]
        rollout = Rollout(actions, log_probs, torch.ones_like(log_probs).bool(), context)
        return torch.cat(images)[back], rollout

    def _batches(
        self, states: Tensor, mask: Tensor, num_images: int, micro_batch: int
    ) -> Iterator[tuple[Int[Tensor, " m"], TextEmbeds]]:
        """Indices of images whose texts may share a batch, ``micro_batch`` at a time, and their
        texts."""
        per_text = _images_per_text(len(states), num_images)
        with phase("painting", num_images, "images") as take:
            for group in self.length_groups(mask):
                texts = self.condition(states[group], mask[group])
                of_text = torch.arange(len(group), device=group.device).repeat_interleave(per_text)
                of_image = torch.arange(per_text, device=group.device)
                index = (group[:, None] * per_text + of_image).flatten()
                for part, text in zip(
                    index.split(micro_batch), of_text.split(micro_batch), strict=True
                ):
                    take(len(part))
                    yield part, texts.select(text)
            take(0)

    # --- as a policy -----------------------------------------------------------------------------

    def evaluate(
        self, rollout: Rollout, *, with_kl: bool, old: Weights | None = None
    ) -> Evaluation:
        """Log-probability of each random denoising step now, the closed-form KL to the reference,
        and the pull to the ``old`` weights."""
        return evaluate_path(self.field, rollout, self.reference, with_kl=with_kl, old=old)

    def predict(
        self,
        context: FlowContext,
        latents: Float[Tensor, "B c h w"],
        sigma: Float[Tensor, " B"],
    ) -> Float[Tensor, "B c h w"]:
        """The velocity at these latents under the texts of ``context``."""
        return velocity_at(self.field, context, latents, sigma)

    # --- pixels ----------------------------------------------------------------------------------

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """``(c, h, w)`` of the latents of a ``height x width`` image."""
        return self.canvas.latent_shape(height, width)

    def matching_loss(
        self,
        latents: Float[Tensor, "N c h w"],
        states: Float[Tensor, "N L D"],
        mask: Bool[Tensor, "N L"],
        sigmas: Float[Tensor, " N"],
        noise: Float[Tensor, "N c h w"],
    ) -> Float[Tensor, ""]:
        """Mean of ``‖v_θ(x_σ, σ, c) − (ε − x)‖²``; texts of any lengths."""
        noisy, total = add_noise(latents, noise, sigmas), torch.zeros((), device=latents.device)
        for rows in self.length_groups(mask):
            embeds = self.condition(states[rows], mask[rows])
            velocity = self.velocity(noisy[rows], sigmas[rows], embeds)
            total = total + len(rows) * flow_matching_loss(velocity, latents[rows], noise[rows])
        return total / len(latents)

    def encode_images(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N c h w"]:
        """Images in [0, 1] to scaled latents."""
        return self.to_latents((images * 2 - 1).to(self.vae.dtype))

    def decode_latents(self, latents: Float[Tensor, "N c h w"]) -> Float[Tensor, "N 3 H W"]:
        """Scaled latents to images in [0, 1]."""
        pixels = self.to_pixels(latents)
        require_finite(pixels, "pixels")
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def round_trip(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        """Images in [0, 1] to latents and back: the best that any caption could lead to."""
        return self.decode_latents(self.encode_images(images))

    # --- files -----------------------------------------------------------------------------------

    def save_pretrained(self, folder: Path | str, *, whole: bool = True) -> None:
        """Subfolders ``transformer vae scheduler projector``, what else the decoder has, and the
        transformer's adapters, unmerged, in ``adapter``; only these and the projector unless
        ``whole``."""
        folder = Path(folder)
        base = folder / "transformer" if whole else Path(self.transformer.config["_name_or_path"])
        models: dict[str, Any] = {FOLDER: self.projector}
        if whole:
            models |= {"transformer": self.adapters.without(), "vae": self.vae}
        for name, model in models.items():
            _forget_folder(model)
            save_exactly(model, folder / name)
        if whole:
            _forget_folder(self.scheduler)
            self.scheduler.save_pretrained(folder / "scheduler")
            self.save_extras(folder)
        self.adapters.save(folder / ADAPTER, base)

    def put_on(self, folder: Path, dtype: torch.dtype | None) -> None:
        """What ``save_pretrained`` wrote of a decoder on this base. dtype: of the projector; None
        leaves it as it is stored."""
        self.projector = load_pretrained(type(self.projector), folder / FOLDER, dtype).to(
            self.device
        )
        self.adapters.load(folder / ADAPTER)


def _random_window(settings: DecodeSettings, sigmas: Tensor) -> tuple[Stochastic, int, int]:
    """How steps are drawn, the first that is random, and the end of those that are."""
    assert settings.sampler != "ode"
    stochastic = Stochastic(
        settings.sampler, settings.noise_level, settings.window_start, settings.window_size
    )
    random_steps = stochastic.is_random(sigmas).nonzero()[:, 0]
    if not len(random_steps):
        raise ValueError(
            f"expected at least one random step in {settings.num_steps}, got {stochastic}: nothing "
            "to learn"
        )
    return stochastic, int(random_steps[0]), int(random_steps[-1]) + 1


def _images_per_text(num_texts: int, num_images: int) -> int:
    if num_texts == 0 or num_images == 0 or num_images % num_texts:
        raise ValueError(
            f"expected noise for the same number of images of each text, got {num_images} for "
            f"{num_texts}"
        )
    return num_images // num_texts


def _forget_folder(part: Any) -> None:
    """Else the folder that it was once loaded from is written, too."""
    part.register_to_config(_name_or_path="")
