"""UMM-2's VQ model: pixels to 12x12 tokens and back, good enough that the detector cannot tell (>=
98 %).

Two parts. ``VqTask`` makes the tokens. ``VqDecoderTask`` makes more of them, when all else is
trained.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn

from uae.models.janus import Janus
from uae.stages.fit import FitSettings
from uae.utils.device import can_compile
from uae.world.build.vae import compare_round_trip, weighted_error
from uae.world.data import pictures
from uae.world.models import build_janus
from uae.world.scene import GRID, MAX_OBJECTS, Object, Scene, Word, scene_at

REVIVE_EVERY = 50  # steps
LOCALITY_COEF = (
    4.0  # codes lie close: what is shared must be nearer to itself than they are to each other
)


class VqTask:
    """Absolute plus squared error, more of it where objects are small, the class's own codebook
    loss, and locality.

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
        if compiled and can_compile():
            self.vq.encoder.compile(dynamic=False)
            self.vq.decoder.compile(dynamic=False)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        pairs = training_pairs(step, self.fit_settings)
        scenes = [scene for pair in pairs for scene in pair]
        images = pictures(scenes)
        encoded = self._encode(images)
        quantized, codebook_loss, _ = self.vq.quantize(encoded)
        error = self.vq.decoder(self.vq.post_quant_conv(quantized)) - (images * 2 - 1)
        shared = shared_places(pairs, encoded.shape[-1])
        unlike = (encoded[0::2] - encoded[1::2]).square().sum(1)[shared].mean()
        metrics = {"abs_error": error.abs().mean().item(), "codebook_loss": codebook_loss.item()}
        loss = weighted_error(error, scenes) + codebook_loss + LOCALITY_COEF * unlike
        return loss, metrics | {"unlike": unlike.item()}

    def _encode(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.vq.quant_conv(self.vq.encoder(images * 2 - 1)), dim=1)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Codes back to unit length; now and then, but not near the end, dead ones to new
        places."""
        codes = self.vq.quantize.embedding.weight
        codes.copy_(nn.functional.normalize(codes, dim=-1))
        if step % REVIVE_EVERY == REVIVE_EVERY - 1 and step < 0.8 * self.fit_settings.num_steps:
            batches = [training_scenes(4 * step + i, self.fit_settings, seed=1) for i in range(4)]
            encoded = torch.cat([self._encode(pictures(scenes)) for scenes in batches])
            dead = self.vq.quantize(encoded)[2].bincount(minlength=len(codes)) == 0
            places = encoded.permute(0, 2, 3, 1).flatten(0, 2)
            far = torch.cdist(places, codes).square().amin(1)
            if dead.any():
                generator = torch.Generator().manual_seed(step)
                codes[dead] = places[torch.multinomial(far, int(dead.sum()), generator=generator)]

    @torch.compiler.set_stance("force_eager")
    def evaluate(self, num_scenes: int = 512) -> dict[str, float]:
        pairs = [(a := scene_at("validation", i), partner(a, i)) for i in range(128)]
        found = measure_vq(self.janus, [scene_at("validation", i) for i in range(num_scenes)])
        return found | {"local": measure_locality(self.janus, pairs)}

    def export(self, folder: Path) -> None:
        self.janus.save_pretrained(folder)


class VqDecoderTask:
    """The VQ decoder alone, last of all: tokens stay as they are, and so does the language model
    that paints them."""

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
        if compiled and can_compile():
            self.vq.encoder.compile(dynamic=False)
            self.vq.decoder.compile(dynamic=False)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = training_scenes(step, self.fit_settings)
        images = pictures(scenes)
        with torch.no_grad():
            tokens = self.janus.image_tokens(images)
        error = self.vq.decode(tokens) - (images * 2 - 1)
        return weighted_error(error, scenes), {"abs_error": error.abs().mean().item()}

    @torch.compiler.set_stance("force_eager")
    def evaluate(self, num_scenes: int = 512) -> dict[str, float]:
        return measure_vq(self.janus, [scene_at("validation", i) for i in range(num_scenes)])

    def export(self, folder: Path) -> None:
        copy.deepcopy(self.janus).to(torch.bfloat16).save_pretrained(folder)  # as it is shipped

    def after_step(self, step: int) -> None:
        pass


def training_scenes(step: int, fit_settings: FitSettings, seed: int | None = None) -> list[Scene]:
    """One of four as it is, the others crowded: objects and words are what there is to learn, not
    backgrounds."""
    seed = fit_settings.seed if seed is None else seed
    places = range(step * fit_settings.batch_size, (step + 1) * fit_settings.batch_size)
    return [crowded_scene(i, seed) if i % 4 else scene_at("train", i, seed=seed) for i in places]


def training_pairs(step: int, fit_settings: FitSettings) -> list[tuple[Scene, Scene]]:
    """A micro-batch in pairs that share cells."""
    scenes = training_scenes(step, fit_settings)[::2]
    return [(scene, partner(scene, step * fit_settings.batch_size + i)) for i, scene in enumerate(scenes)]


def partner(scene: Scene, index: int) -> Scene:
    """About half of the scene on the same background, and half of a crowded one."""
    rng, other = random.Random(f"partner {index}"), crowded_scene(index, seed=2)
    kept = {o.cell: o for o in scene.objects if rng.random() < 0.5}
    word = scene.word if scene.word and rng.random() < 0.5 else None
    free = {cell for cell in range(GRID * GRID) if rng.random() < 0.5} - {
        word.cell if word else None
    }
    if word is None and other.word and other.word.cell in free - kept.keys():
        word = other.word
    added = {
        o.cell: o for o in other.objects if o.cell in free and (word is None or o.cell != word.cell)
    }
    return Scene(scene.background, tuple(sorted((added | kept).values())), word)


def shared_places(pairs: list[tuple[Scene, Scene]], side: int) -> Tensor:
    """``[P, side, side]``: where both of a pair show the same cell."""
    same = torch.tensor(
        [[a == b for a, b in zip(cells(one), cells(other), strict=True)] for one, other in pairs]
    )
    return repeat(same, "p (gy gx) -> p (gy y) (gx x)", gy=GRID, y=side // GRID, x=side // GRID)


def cells(scene: Scene) -> list[Object | Word | None]:
    """What each cell holds."""
    held: dict[int, Object | Word] = {o.cell: o for o in scene.objects}
    if scene.word:
        held[scene.word.cell] = scene.word
    return [held.get(cell) for cell in range(GRID * GRID)]


def crowded_scene(index: int, seed: int = 0) -> Scene:
    """The objects of three scenes in one, about seven, and a word: more than any scene of a split
    has."""
    several = [
        scene_at("train", 3 * index + i, seed=seed, num_objects=MAX_OBJECTS, with_word=True)
        for i in range(3)
    ]
    background, word = several[0].background, several[0].word
    in_cell = {
        o.cell: o
        for scene in several
        for o in scene.objects
        if word is not None and o.cell != word.cell
    }
    return Scene(background, tuple(sorted(in_cell.values())), word)


@torch.no_grad()
def measure_locality(janus: Janus, pairs: list[tuple[Scene, Scene]]) -> float:
    """Of the places that both of a pair show alike, the share whose tokens are the same."""
    one, other = (janus.image_tokens(pictures(list(scenes))) for scenes in zip(*pairs, strict=True))
    side = int(one.shape[1] ** 0.5)
    same = (one == other).view(-1, side, side)
    return same[shared_places(pairs, side)].float().mean().item()


@torch.no_grad()
def measure_vq(janus: Janus, scenes: list[Scene]) -> dict[str, float]:
    """Round trip through tokens: what the detector still reads exactly, PSNR in dB, and the share
    of codes in use."""
    images, vq = pictures(scenes), janus.model.model.vqmodel
    tokens = torch.cat([janus.image_tokens(part) for part in images.split(64)])
    decoded = torch.cat([vq.decode(part) for part in tokens.split(64)])
    used = len(tokens.unique()) / vq.config.num_embeddings
    return compare_round_trip(scenes, images, decoded) | {"codebook_used": used}
