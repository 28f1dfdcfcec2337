"""UMM-2's VQ model: pixels to 12x12 tokens and back, good enough that the detector cannot tell (>= 98 %).

Two parts. ``VqTask`` makes the tokens. ``VqDecoderTask`` makes more of them, when all else is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uae.models.janus import Janus
from uae.models.tiny import build_janus
from uae.scenes.scene import MAX_OBJECTS, Scene, scene_at
from uae.stages.fit import Recipe
from uae.stages.tiny.data import images_of
from uae.stages.tiny.vae import compare_round_trip, weighted_error
from uae.utils.device import can_compile

REVIVE_EVERY = 50  # steps


class VqTask:
    """Absolute plus squared error, more of it where objects are small, and the class's own codebook loss.

    The class decodes codes at unit length, so codes are kept there, and encodings too. Codes that no picture uses are
    put where the encoder is.
    """

    name = "vq"
    recipe = Recipe(num_steps=4_500, batch_size=16, num_parallel=2, learning_rate=2e-3, ema_decay=0.998)

    def __init__(self, compiled: bool = True) -> None:
        torch.manual_seed(self.recipe.seed)
        self.janus = build_janus()
        self.vq: Any = self.janus.model.model.vqmodel
        codes = self.vq.quantize.embedding.weight
        codes.data = nn.functional.normalize(torch.randn_like(codes), dim=-1)
        self.modules: dict[str, nn.Module] = {"vq": self.vq}
        if compiled and can_compile():
            self.vq.encoder.compile(dynamic=False)
            self.vq.decoder.compile(dynamic=False)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = training_scenes(step, self.recipe)
        images = images_of(scenes)
        quantized, codebook_loss, _ = self.vq.quantize(self._encode(images))
        error = self.vq.decoder(self.vq.post_quant_conv(quantized)) - (images * 2 - 1)
        metrics = {"abs_error": error.abs().mean().item(), "codebook_loss": codebook_loss.item()}
        return weighted_error(error, scenes) + codebook_loss, metrics

    def _encode(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.vq.quant_conv(self.vq.encoder(images * 2 - 1)), dim=1)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Codes back to unit length; now and then, but not near the end, dead ones to where the encoder is."""
        codes = self.vq.quantize.embedding.weight
        codes.copy_(nn.functional.normalize(codes, dim=-1))
        if step % REVIVE_EVERY == REVIVE_EVERY - 1 and step < 0.8 * self.recipe.num_steps:
            batches = [training_scenes(4 * step + i, self.recipe, seed=1) for i in range(4)]
            encoded = torch.cat([self._encode(images_of(scenes)) for scenes in batches])
            dead = self.vq.quantize(encoded)[2].bincount(minlength=len(codes)) == 0
            places = encoded.permute(0, 2, 3, 1).flatten(0, 2)
            drawn = torch.randperm(len(places), generator=torch.Generator().manual_seed(step))
            codes[dead] = places[drawn[: int(dead.sum())]]

    @torch.compiler.set_stance("force_eager")
    def evaluate(self, num_scenes: int = 512) -> dict[str, float]:
        return measure_vq(self.janus, [scene_at("validation", i) for i in range(num_scenes)])

    def export(self, folder: Path) -> None:
        self.janus.save_pretrained(folder)


class VqDecoderTask:
    """The VQ decoder alone, last of all: tokens stay as they are, and so does the language model that paints them."""

    name = "vq_decoder"
    recipe = Recipe(num_steps=2_500, batch_size=16, num_parallel=2, learning_rate=1e-3, ema_decay=0.998, seed=1)

    def __init__(self, janus_folder: Path, compiled: bool = True) -> None:
        self.janus = Janus.from_pretrained(janus_folder)
        self.janus.requires_grad_(False)
        self.vq: Any = self.janus.model.model.vqmodel
        self.modules: dict[str, nn.Module] = {"post_quant_conv": self.vq.post_quant_conv, "decoder": self.vq.decoder}
        for module in self.modules.values():
            module.requires_grad_(True)
        if compiled and can_compile():
            self.vq.encoder.compile(dynamic=False)
            self.vq.decoder.compile(dynamic=False)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = training_scenes(step, self.recipe)
        images = images_of(scenes)
        with torch.no_grad():
            tokens = self.janus.image_tokens(images)
        error = self.vq.decode(tokens) - (images * 2 - 1)
        return weighted_error(error, scenes), {"abs_error": error.abs().mean().item()}

    @torch.compiler.set_stance("force_eager")
    def evaluate(self, num_scenes: int = 512) -> dict[str, float]:
        return measure_vq(self.janus, [scene_at("validation", i) for i in range(num_scenes)])

    def export(self, folder: Path) -> None:
        self.janus.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


def training_scenes(step: int, recipe: Recipe, seed: int | None = None) -> list[Scene]:
    """One of four as it is, the others crowded: objects and words are what there is to learn, not backgrounds."""
    seed = recipe.seed if seed is None else seed
    places = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
    return [crowded_scene(i, seed) if i % 4 else scene_at("train", i, seed=seed) for i in places]


def crowded_scene(index: int, seed: int = 0) -> Scene:
    """The objects of three scenes in one, about seven, and a word: more than any scene of a split has."""
    several = [scene_at("train", 3 * index + i, seed=seed, num_objects=MAX_OBJECTS, with_word=True) for i in range(3)]
    background, word = several[0].background, several[0].word
    in_cell = {o.cell: o for scene in several for o in scene.objects if word is not None and o.cell != word.cell}
    return Scene(background, tuple(sorted(in_cell.values())), word)


@torch.no_grad()
def measure_vq(janus: Janus, scenes: list[Scene]) -> dict[str, float]:
    """Round trip through tokens: what the detector still reads exactly, PSNR in dB, and the share of codes in use."""
    images, vq = images_of(scenes), janus.model.model.vqmodel
    tokens = torch.cat([janus.image_tokens(part) for part in images.split(64)])
    decoded = torch.cat([vq.decode(part) for part in tokens.split(64)])
    used = len(tokens.unique()) / vq.config.num_embeddings
    return compare_round_trip(scenes, images, decoded) | {"codebook_used": used}
