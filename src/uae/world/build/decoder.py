"""The world's decoder: captions to latents, by flow matching on the LLM's text states.

Two parts. ``JointTask`` trains the LLM (captions and questions go on) beside projector and SD3
transformer. When ``BindingTask`` has taught the LLM's text states to bind, ``DecoderTask`` freezes
it and trains projector and transformer alone: long-caption pretraining, at twice the speed.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from uae.diffusion.loss import flow_matching_loss
from uae.diffusion.schedule import add_noise, training_sigmas
from uae.models.base import UnifiedModel
from uae.models.encoders.qwen_vl import QwenVL
from uae.models.llm_diffusion import LLMDiffusion
from uae.stages.fit import FitSettings
from uae.utils.device import can_compile
from uae.utils.seed import normals
from uae.world.build.captioner import (
    caption_and_answer_loss,
    greedy_caption_quality,
    question_shares,
)
from uae.world.data import pictures, train_scenes
from uae.world.fidelity import fidelity, paint
from uae.world.language import caption, caption_level, exhaustive_caption
from uae.world.models import build_decoder, build_llm_diffusion
from uae.world.scene import Scene, first_scenes

NUM_CAPTIONER_IMAGES = 8  # per micro-batch, for the captioning loss
CAPTIONER_COEF = 0.25  # of that loss


class JointTask:
    """Flow matching plus the captioner's own loss; all but the VAE learns."""

    name = "joint"
    fit_settings = FitSettings(
        num_steps=2_000, batch_size=32, num_parallel=2, learning_rate=1.2e-3, ema_decay=0.998
    )
    exhaustive_share = 0.6

    def __init__(self, vae_folder: Path, captioner_folder: Path, compiled: bool = True) -> None:
        torch.manual_seed(self.fit_settings.seed)
        vae = AutoencoderKL.from_pretrained(vae_folder)
        captioner = QwenVL.from_pretrained(captioner_folder)
        self.model = build_llm_diffusion(captioner, build_decoder(vae))  # type: ignore[arg-type]
        self.modules = {
            "captioner": self.model.encoder.model,
            **_learning_parts(self.model, compiled),
        }

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.fit_settings.batch_size)
        rng = random.Random(f"joint {step}")
        with torch.autocast("cpu", torch.bfloat16):
            flow_loss = scene_flow_loss(self.model, scenes, self.exhaustive_share, rng, step)
            captioner_loss, metrics = caption_and_answer_loss(
                self.model.encoder, scenes[:NUM_CAPTIONER_IMAGES], rng
            )
        loss = flow_loss + CAPTIONER_COEF * captioner_loss
        return loss, {"flow_loss": flow_loss.item(), **metrics}

    def evaluate(self) -> dict[str, float]:
        scenes = first_scenes("validation", 200, with_word=False)
        encoder = self.model.encoder
        return {
            "objects_exact": objects_exact(self.model, scenes),
            "question_accuracy": question_shares(encoder, scenes, per_scene=3)["all"],
            "detailed_recall": greedy_caption_quality(encoder, scenes, "detailed")["exact_recall"],
        }

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


class DecoderTask:
    """Flow matching alone, on the states of the LLM as ``BindingTask`` left it."""

    name = "decoder"
    fit_settings = FitSettings(
        num_steps=3_200,
        batch_size=32,
        num_parallel=2,
        learning_rate=1.2e-3,
        ema_decay=0.999,
        seed=1,
    )
    exhaustive_share = 0.65

    def __init__(self, vae_folder: Path, binding_folder: Path, compiled: bool = True) -> None:
        self.model = LLMDiffusion.from_pretrained(binding_folder)
        self.model.requires_grad_(False)
        self.model.decoder.vae = AutoencoderKL.from_pretrained(vae_folder)  # type: ignore
        self.modules = _learning_parts(self.model, compiled)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.fit_settings.batch_size, seed=self.fit_settings.seed)
        with torch.autocast("cpu", torch.bfloat16):
            rng = random.Random(f"decoder {step}")
            return scene_flow_loss(self.model, scenes, self.exhaustive_share, rng, step), {}

    def evaluate(self) -> dict[str, float]:
        scenes = first_scenes("validation", 400, with_word=False)
        return {"objects_exact": objects_exact(self.model, scenes)}

    def export(self, folder: Path) -> None:
        copy.deepcopy(self.model).to(torch.bfloat16).save_pretrained(folder)  # as it is shipped

    def after_step(self, step: int) -> None:
        pass


def _learning_parts(model: LLMDiffusion, compiled: bool) -> dict[str, nn.Module]:
    """Transformer and projector, made to learn; the transformer compiled if it can be.

    That is 2.5 times as fast.
    """
    decoder = model.decoder
    decoder.transformer.requires_grad_(True)
    decoder.projector.requires_grad_(True)
    if compiled and can_compile():
        decoder.transformer.compile(dynamic=False)
    return {"transformer": decoder.transformer, "projector": decoder.projector}


def scene_flow_loss(
    model: LLMDiffusion, scenes: list[Scene], exhaustive_share: float, rng: random.Random, step: int
) -> Tensor:
    """``‖v_θ(x_σ, σ, c) - (ε - x)‖²`` for a caption c of each scene.

    Noise and sigma are keyed by ``step``.
    """
    decoder = model.decoder
    texts = [caption(s, caption_level(exhaustive_share, rng), rng) for s in scenes]
    with torch.no_grad():
        latents = decoder.encode_images(pictures(scenes))
    embeds = decoder.condition(*model.text_states(texts))
    noise = normals(0, step, range(len(scenes)), "noise", latents.shape[1:])
    sigmas = training_sigmas(normals(0, step, range(len(scenes)), "sigma", (1,))[:, 0])
    velocity = decoder.velocity(add_noise(latents, noise, sigmas), sigmas, embeds)
    return flow_matching_loss(velocity, latents, noise)


@torch.compiler.set_stance("force_eager")
def objects_exact(model: UnifiedModel, scenes: list[Scene]) -> float:
    """Share of objects painted exactly right from exhaustive true captions."""
    images = paint(model, [exhaustive_caption(s) for s in scenes], model.decoding)
    return (fidelity(scenes, images).objects_exact.percent or 0.0) / 100
