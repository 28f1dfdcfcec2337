"""The world's decoder: captions at all levels of detail to latents, by flow matching on the LLM's
text states.

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
from uae.world.build.captioner import caption_and_answer_loss, measure_captions, measure_questions
from uae.world.data import pictures, train_scenes
from uae.world.fidelity import fidelity, paint
from uae.world.language import caption, caption_level, exhaustive_caption
from uae.world.models import build_decoder, build_llm_diffusion
from uae.world.scene import Scene, scene_at

NUM_CAPTIONER_IMAGES = 8  # per micro-batch, for the captioning loss


class JointTask:
    """Flow matching ``‖v_θ(x_σ, σ, c) - (ε - x)‖²`` plus the captioner's own loss; all but the VAE
    learns."""

    name = "joint"
    fit_settings = FitSettings(
        num_steps=2_000, batch_size=32, num_parallel=2, learning_rate=1.2e-3, ema_decay=0.998
    )
    exhaustive_share = 0.6

    def __init__(self, vae_folder: Path, captioner_folder: Path, compiled: bool = True) -> None:
        torch.manual_seed(self.fit_settings.seed)
        vae = AutoencoderKL.from_pretrained(vae_folder)
        self.model = build_llm_diffusion(
            QwenVL.from_pretrained(captioner_folder), build_decoder(vae)
        )  # type: ignore[arg-type]
        self.modules = {"captioner": self.model.encoder.model, **_learning(self.model, compiled)}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.fit_settings.batch_size)
        rng = random.Random(f"joint {step}")
        with torch.autocast("cpu", torch.bfloat16):
            flow = flow_loss(self.model, scenes, self.exhaustive_share, rng, step)
            said, metrics = caption_and_answer_loss(
                self.model.encoder, scenes[:NUM_CAPTIONER_IMAGES], rng
            )
        return flow + 0.25 * said, {"flow_loss": flow.item(), **metrics}

    def evaluate(self) -> dict[str, float]:
        scenes = [scene_at("validation", i, with_word=False) for i in range(200)]
        encoder = self.model.encoder
        return {
            "objects_exact": objects_exact(self.model, scenes),
            "question_accuracy": measure_questions(encoder, scenes, per_scene=3)["all"],
            "detailed_recall": measure_captions(encoder, scenes, "detailed")["exact_recall"],
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
        self.model.decoder.vae = AutoencoderKL.from_pretrained(vae_folder)  # type: ignore[assignment]
        self.modules = _learning(self.model, compiled)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.fit_settings.batch_size, seed=self.fit_settings.seed)
        with torch.autocast("cpu", torch.bfloat16):
            rng = random.Random(f"decoder {step}")
            return flow_loss(self.model, scenes, self.exhaustive_share, rng, step), {}

    def evaluate(self) -> dict[str, float]:
        scenes = [scene_at("validation", i, with_word=False) for i in range(400)]
        return {"objects_exact": objects_exact(self.model, scenes)}

    def export(self, folder: Path) -> None:
        copy.deepcopy(self.model).to(torch.bfloat16).save_pretrained(folder)  # as it is shipped

    def after_step(self, step: int) -> None:
        pass


def _learning(model: LLMDiffusion, compiled: bool) -> dict[str, nn.Module]:
    """Transformer and projector, made to learn; the transformer compiled, which is 2.5 times as
    fast, if it can be."""
    decoder = model.decoder
    decoder.transformer.requires_grad_(True)
    decoder.projector.requires_grad_(True)
    if compiled and can_compile():
        decoder.transformer.compile(dynamic=False)
    return {"transformer": decoder.transformer, "projector": decoder.projector}


def flow_loss(
    model: LLMDiffusion, scenes: list[Scene], exhaustive_share: float, rng: random.Random, step: int
) -> Tensor:
    """``‖v_θ(x_σ, σ, c) - (ε - x)‖²`` for a caption of each scene; noise and sigma are keyed by
    ``step``."""
    decoder, texts = (
        model.decoder,
        [caption(s, caption_level(exhaustive_share, rng), rng) for s in scenes],
    )
    with torch.no_grad():
        latents = decoder.encode_images(pictures(scenes))
    embeds = decoder.condition(*model.text_states(texts))
    noise = normals(0, step, range(len(scenes)), "noise", latents.shape[1:])
    sigmas = training_sigmas(normals(0, step, range(len(scenes)), "sigma", (1,))[:, 0])
    return flow_matching_loss(
        decoder.velocity(add_noise(latents, noise, sigmas), sigmas, embeds), latents, noise
    )


@torch.compiler.set_stance("force_eager")
def objects_exact(model: UnifiedModel, scenes: list[Scene]) -> float:
    """Share of objects painted exactly right from exhaustive true captions."""
    painted = paint(model, [exhaustive_caption(s) for s in scenes], model.decoding)
    return (fidelity(scenes, painted).objects_exact.percent or 0.0) / 100
