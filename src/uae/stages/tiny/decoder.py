"""The world's decoder: captions at all levels of detail to latents, by flow matching on the LLM's text states.

The LLM learns beside it (captions and questions go on), because the last states of a causal captioner bind
attributes to objects late when they stay frozen; afterwards both are frozen together.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from uae.config import DecodeSettings
from uae.diffusion.loss import flow_matching_loss
from uae.diffusion.schedule import add_noise, training_sigmas
from uae.models.llm_diffusion import LLMDiffusion
from uae.models.qwen_vl import QwenVL
from uae.models.tiny import build_decoder
from uae.scenes.detector import detect
from uae.scenes.language import caption, exhaustive_caption
from uae.scenes.scene import Scene, scene_at
from uae.stages.fit import Recipe
from uae.stages.tiny.captioner import caption_and_answer_loss, measure_captions, measure_questions
from uae.stages.tiny.data import images_of, train_scenes
from uae.utils.seed import normals

LEVEL_SHARES = {"exhaustive": 0.6, "layout": 0.12, "objects": 0.1, "salient": 0.08, "count": 0.05, "gist": 0.05}
NUM_CAPTIONER_IMAGES = 8  # per step, for the captioning loss


class DecoderTask:
    """Flow matching ``‖v_θ(x_σ, σ, c) - (ε - x)‖²`` plus the captioner's own loss."""

    name = "decoder"
    recipe = Recipe(num_steps=6_000, batch_size=32, num_parallel=2, learning_rate=1.2e-3, ema_decay=0.999)

    def __init__(self, vae_folder: Path, captioner_folder: Path) -> None:
        torch.manual_seed(self.recipe.seed)
        vae = AutoencoderKL.from_pretrained(vae_folder)
        self.model = LLMDiffusion(QwenVL.from_pretrained(captioner_folder), build_decoder(vae))  # type: ignore[arg-type]
        decoder = self.model.decoder
        decoder.transformer.requires_grad_(True)
        decoder.projector.requires_grad_(True)
        self.modules: dict[str, nn.Module] = {
            "captioner": self.model.encoder.model,
            "transformer": decoder.transformer,
            "projector": decoder.projector,
        }

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.recipe.batch_size)
        rng = random.Random(f"decoder {step}")
        with torch.autocast("cpu", torch.bfloat16):
            flow = self._flow_loss(scenes, [caption(s, _level(rng), rng) for s in scenes], step)
            said, metrics = caption_and_answer_loss(self.model.encoder, scenes[:NUM_CAPTIONER_IMAGES], rng)
        return flow + 0.25 * said, {"flow_loss": flow.item(), **metrics}

    def _flow_loss(self, scenes: list[Scene], texts: list[str], step: int) -> Tensor:
        decoder = self.model.decoder
        with torch.no_grad():
            latents = decoder.encode_images(images_of(scenes))
        embeds = decoder.condition(*self.model.text_states(texts))
        noise = normals(self.recipe.seed, step, range(len(scenes)), "noise", latents.shape[1:])
        sigmas = training_sigmas(normals(self.recipe.seed, step, range(len(scenes)), "sigma", (1,))[:, 0])
        return flow_matching_loss(decoder.velocity(add_noise(latents, noise, sigmas), sigmas, embeds), latents, noise)

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


def objects_exact(model: LLMDiffusion, scenes: list[Scene], num_steps: int = 10) -> float:
    """Share of objects painted exactly right from exhaustive true captions."""
    painted = model.generate([exhaustive_caption(s) for s in scenes], DecodeSettings(num_steps=num_steps)).images
    found = detect(painted)
    exact = sum(len(set(s.objects) & set(f.objects)) for s, f in zip(scenes, found, strict=True))
    return exact / sum(len(s.objects) for s in scenes)


def _level(rng: random.Random) -> str:
    draw = rng.random()
    for level, share in LEVEL_SHARES.items():
        draw -= share
        if draw < 0:
            return level
    return "exhaustive"
