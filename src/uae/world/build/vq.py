"""UMM-2's VQ model: pixels to 12x12 tokens and back; of these, the detector reads >= 98 %.

Two parts. ``VqTask`` makes the tokens. ``VqDecoderTask`` makes more of them, when all else is
trained.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uae.models.janus import Janus
from uae.stages.fit import FitSettings
from uae.utils.device import can_compile
from uae.world.build.vae import compare_round_trip, weighted_error
from uae.world.build.vision import to_tokens
from uae.world.data import pictures
from uae.world.models import build_janus
from uae.world.scene import GRID, MAX_OBJECTS, Scene, first_scenes, scene_at

REVIVE_EVERY = 50  # steps
# codes lie close: what is shared must be nearer to itself than they are to each other
LOCALITY_COEF = 4.0


class VqTask:
    """Absolute plus squared error, the class's own codebook loss, and locality.

    The error counts more where objects are small.

    The class decodes codes at unit length, so codes are kept there, and encodings too. Codes that
    no picture uses go where the encoder is far from all others.

    Locality: images come in pairs that share some cells, and what is shared is to be encoded alike,
    whatever lies around. Left alone, half of a cell's tokens change with the rest of the picture
    (its norms and attention see all of it), and a language model that paints has to guess a hash.
    """

    name = "vq"
    fit_settings = FitSettings(
        num_steps=8_000, batch_size=16, num_parallel=2, learning_rate=2e-3, ema_decay=0.998
    )

    def __init__(self, compiled: bool = True) -> None:
        torch.manual_seed(self.fit_settings.seed)
        self.janus = build_janus()
        self.vq: Any = self.janus.model.model.vqmodel
        codes = self.vq.quantize.embedding.weight
        codes.data = nn.functional.normalize(torch.randn_like(codes), dim=-1)
        self.modules: dict[str, nn.Module] = {"vq": self.vq}
        if compiled:
            _compile(self.vq)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        pairs = training_pairs(step, self.fit_settings)
        scenes = [scene for pair in pairs for scene in pair]
        images = pictures(scenes)
        encoded = self._encode(images)
        quantized, codebook_loss, _ = self.vq.quantize(encoded)
        error = self.vq.decoder(self.vq.post_quant_conv(quantized)) - (images * 2 - 1)
        shared = shared_places(pairs, encoded.shape[-1])
        distance = (encoded[0::2] - encoded[1::2]).square().sum(1)[shared].mean()
        metrics = {"abs_error": error.abs().mean().item(), "codebook_loss": codebook_loss.item()}
        loss = weighted_error(error, scenes) + codebook_loss + LOCALITY_COEF * distance
        return loss, metrics | {"unlike": distance.item()}

    def _encode(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.vq.quant_conv(self.vq.encoder(images * 2 - 1)), dim=1)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Codes back to unit length; now and then, but not near the end, dead ones move."""
        codes = self.vq.quantize.embedding.weight
        codes.copy_(nn.functional.normalize(codes, dim=-1))
        if step % REVIVE_EVERY == REVIVE_EVERY - 1 and step < 0.8 * self.fit_settings.num_steps:
            batches = [training_scenes(4 * step + i, self.fit_settings, seed=1) for i in range(4)]
            encoded = torch.cat([self._encode(pictures(scenes)) for scenes in batches])
            is_dead = self.vq.quantize(encoded)[2].bincount(minlength=len(codes)) == 0
            encodings = encoded.permute(0, 2, 3, 1).flatten(0, 2)
            distances = torch.cdist(encodings, codes).square().amin(1)
            if (num_dead := int(is_dead.sum())) > 0:
                generator = torch.Generator().manual_seed(step)
                chosen = torch.multinomial(distances, num_dead, generator=generator)
                codes[is_dead] = encodings[chosen]

    @torch.compiler.set_stance("force_eager")
    def evaluate(self, num_scenes: int = 512) -> dict[str, float]:
        scenes = first_scenes("validation", 128)
        pairs = [(scene, partner(scene, i)) for i, scene in enumerate(scenes)]
        round_trip = measure_vq(self.janus, first_scenes("validation", num_scenes))
        return round_trip | {"local": measure_locality(self.janus, pairs)}

    def export(self, folder: Path) -> None:
        self.janus.save_pretrained(folder)


class VqDecoderTask:
    """The VQ decoder alone, last of all: tokens stay, and so does the model that paints them."""

    name = "vq_decoder"
    fit_settings = FitSettings(
        num_steps=1_900, batch_size=16, num_parallel=2, learning_rate=1e-3, ema_decay=0.998, seed=1
    )

    def __init__(self, janus_folder: Path, compiled: bool = True) -> None:
        self.janus = Janus.from_pretrained(janus_folder)
        self.janus.requires_grad_(False)
        self.vq: Any = self.janus.model.model.vqmodel
        self.modules: dict[str, nn.Module] = {
            "post_quant_conv": self.vq.post_quant_conv,
            "decoder": self.vq.decoder,
        }
        for module in self.modules.values():
            module.requires_grad_(True)
        if compiled:
            _compile(self.vq)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = training_scenes(step, self.fit_settings)
        images = pictures(scenes)
        with torch.no_grad():
            tokens = self.janus.image_tokens(images)
        error = self.vq.decode(tokens) - (images * 2 - 1)
        return weighted_error(error, scenes), {"abs_error": error.abs().mean().item()}

    @torch.compiler.set_stance("force_eager")
    def evaluate(self, num_scenes: int = 512) -> dict[str, float]:
        return measure_vq(self.janus, first_scenes("validation", num_scenes))

    def export(self, folder: Path) -> None:
        copy.deepcopy(self.janus).to(torch.bfloat16).save_pretrained(folder)  # as it is shipped

    def after_step(self, step: int) -> None:
        pass


def _compile(vq: Any) -> None:
    """Encoder and decoder, where this machine can."""
    if can_compile():
        vq.encoder.compile(dynamic=False)
        vq.decoder.compile(dynamic=False)


def training_scenes(step: int, fit_settings: FitSettings, seed: int | None = None) -> list[Scene]:
    """One of four as it is, the others crowded.

    What there is to learn is objects and words, not backgrounds.
    """
    seed = fit_settings.seed if seed is None else seed
    indices = range(step * fit_settings.batch_size, (step + 1) * fit_settings.batch_size)
    return [crowded_scene(i, seed) if i % 4 else scene_at("train", i, seed=seed) for i in indices]


def training_pairs(step: int, fit_settings: FitSettings) -> list[tuple[Scene, Scene]]:
    """A micro-batch in pairs that share cells."""
    scenes = training_scenes(step, fit_settings)[::2]
    start = step * fit_settings.batch_size
    return [(scene, partner(scene, start + i)) for i, scene in enumerate(scenes)]


def partner(scene: Scene, index: int) -> Scene:
    """About half of the scene on the same background, and half of a crowded one."""
    rng, other = random.Random(f"partner {index}"), crowded_scene(index, seed=2)
    objects = {o.cell: o for o in scene.objects if rng.random() < 0.5}
    word = scene.word if scene.word and rng.random() < 0.5 else None
    cells = {cell for cell in range(GRID * GRID) if rng.random() < 0.5}
    cells -= {word.cell} if word else set()
    if word is None and other.word and other.word.cell in cells - objects.keys():
        word = other.word
        cells.remove(word.cell)
    additions = {o.cell: o for o in other.objects if o.cell in cells}
    return Scene(scene.background, tuple(sorted((additions | objects).values())), word)


def shared_places(pairs: list[tuple[Scene, Scene]], side: int) -> Tensor:
    """``[P, side, side]``: where both of a pair show the same cell."""
    contents = [zip(one.contents, other.contents, strict=True) for one, other in pairs]
    is_same = torch.tensor([[a == b for a, b in cells] for cells in contents])
    return to_tokens(is_same, side * side).unflatten(1, (side, side))


def crowded_scene(index: int, seed: int = 0) -> Scene:
    """The objects of three scenes in one, about seven, and a word: more than a split's scenes."""
    several = [
        scene_at("train", 3 * index + i, seed=seed, num_objects=MAX_OBJECTS, with_word=True)
        for i in range(3)
    ]
    background, word = several[0].background, several[0].word
    assert word is not None
    by_cell = {o.cell: o for scene in several for o in scene.objects if o.cell != word.cell}
    return Scene(background, tuple(sorted(by_cell.values())), word)


@torch.no_grad()
def measure_locality(janus: Janus, pairs: list[tuple[Scene, Scene]]) -> float:
    """Of the places that both of a pair show alike, the share whose tokens are the same."""
    one, other = (janus.image_tokens(pictures(list(scenes))) for scenes in zip(*pairs, strict=True))
    side = int(one.shape[1] ** 0.5)
    is_same = (one == other).view(-1, side, side)
    return is_same[shared_places(pairs, side)].float().mean().item()


@torch.no_grad()
def measure_vq(janus: Janus, scenes: list[Scene]) -> dict[str, float]:
    """Round trip through tokens, as ``compare_round_trip`` says, and the share of codes in use."""
    images, vq = pictures(scenes), janus.model.model.vqmodel
    tokens = torch.cat([janus.image_tokens(batch) for batch in images.split(64)])
    decoded = torch.cat([vq.decode(batch) for batch in tokens.split(64)])
    share_in_use = len(tokens.unique()) / vq.config.num_embeddings
    return compare_round_trip(scenes, images, decoded) | {"codebook_used": share_in_use}
