"""The world's VAE: pixels to 12x12x4 latents and back; of these, the detector reads >= 99 %."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from uae.stages.fit import FitSettings
from uae.world.data import pictures, train_scenes
from uae.world.fidelity import fidelity, psnr
from uae.world.models import build_vae
from uae.world.scene import IMAGE_SIZE, Scene, cell_slice, first_scenes, scene_at

KL_COEF = 1e-4  # of the summed KL per image value: keeps latents near unit scale, costs no detail
# afterwards the decoder alone learns, on latents without noise: what they hold must come out
ENCODER_STEPS = 15_000
# of the error in cells that hold a small object: 1 % of the pixels, and the last to come right
SMALL_WEIGHT = 5.0


class VaeTask:
    """Absolute plus squared error, more of it where objects are small, and a light KL."""

    name = "vae"
    fit_settings = FitSettings(
        num_steps=19_000, batch_size=16, learning_rate=2e-3, warmup_steps=200, ema_decay=0.998
    )

    def __init__(self) -> None:
        torch.manual_seed(self.fit_settings.seed)
        self.vae = build_vae().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.modules: dict[str, nn.Module] = {"vae": self.vae}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.fit_settings.batch_size)
        images = pictures(scenes).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(step < ENCODER_STEPS):
                posterior = self.vae.encode(images * 2 - 1).latent_dist  # type: ignore[union-attr]
                latents = posterior.sample() if step < ENCODER_STEPS else posterior.mode()
            decoded = self.vae.decode(latents).sample.float()  # type: ignore[union-attr]
        error = decoded - (images * 2 - 1)
        reconstruction = weighted_error(error, scenes)
        mean, variance = posterior.mean.float(), posterior.var.float()
        kl = 0.5 * (mean**2 + variance - 1 - posterior.logvar.float()).mean()
        metrics = {"abs_error": error.abs().mean().item(), "kl": kl.item()}
        return reconstruction + KL_COEF * kl, metrics

    def evaluate(self, num_scenes: int = 512) -> dict[str, float]:
        return measure_vae(self.vae, first_scenes("validation", num_scenes))

    def export(self, folder: Path) -> None:
        scenes = [scene_at("train", 10**9 + i) for i in range(512)]
        latents = encode_means(self.vae, pictures(scenes))
        self.vae.register_to_config(
            scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item()
        )
        self.vae.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


def weighted_error(error: Tensor, scenes: list[Scene]) -> Tensor:
    """Mean absolute plus twice the squared error of pixels in [-1, 1], more of small objects."""
    weight = pixel_weights(scenes)
    return ((error.abs() + 2 * error.square()) * (weight / weight.mean())).mean()


def pixel_weights(scenes: list[Scene]) -> Tensor:
    """``[B, 1, H, W]``: ``SMALL_WEIGHT`` in cells that hold a small object, 1 elsewhere."""
    weights = torch.ones(len(scenes), 1, IMAGE_SIZE, IMAGE_SIZE)
    for b, scene in enumerate(scenes):
        for o in scene.objects:
            if o.size == "small":
                weights[b, 0, *cell_slice(o.cell)] = SMALL_WEIGHT
    return weights


@torch.no_grad()
def encode_means(vae: AutoencoderKL, images: Tensor, batch_size: int = 64) -> Tensor:
    """``[B, c, h, w]`` posterior means, unscaled."""
    posteriors: list[Any] = [vae.encode(batch * 2 - 1) for batch in images.split(batch_size)]
    return torch.cat([posterior.latent_dist.mean for posterior in posteriors])


@torch.no_grad()
def measure_vae(vae: AutoencoderKL, scenes: list[Scene]) -> dict[str, float]:
    """Pixels to latents and back, as ``compare_round_trip`` says."""
    images = pictures(scenes)
    latents = encode_means(vae, images)
    decoded = torch.cat([vae.decode(batch).sample for batch in latents.split(64)])  # type: ignore
    return compare_round_trip(scenes, images, decoded)


def compare_round_trip(scenes: list[Scene], images: Tensor, decoded: Tensor) -> dict[str, float]:
    """Share of objects, words and whole scenes that survive in ``decoded``; PSNR in dB.

    ``decoded`` is in [-1, 1].
    """
    decoded = (decoded / 2 + 0.5).clamp(0, 1)
    result = fidelity(scenes, decoded)
    shares = {
        "objects_exact": result.objects_exact,
        "words_exact": result.words_exact,
        "scenes_exact": result.scenes_exact,
    }
    exact = {
        name: share.percent / 100 for name, share in shares.items() if share.percent is not None
    }
    return exact | {"psnr": psnr(images, decoded)}
