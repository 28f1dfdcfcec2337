"""The judge of pictures of the world: an image in, the objects it shows and how sure that is out.

Analysis by synthesis. A cell can show 169 things (nothing, 144 objects, 24 words) on each of 6 backgrounds, and
each of these has exactly one picture. The detector takes the background, then for each cell the picture ``t1``,
that is nearest in squared error to the cell ``x``. Its confidence against another picture ``t2`` is

    c = (|x - t2|^2 - |x - t1|^2) / |t1 - t2|^2

which is 1 when ``x`` equals ``t1`` and 0 halfway between the two, whatever the contrast or size of what
distinguishes them; the reported confidence is the smallest over all ``t2``. A cell is *unsure* when that is below
``MIN_CONFIDENCE`` or when even ``t1`` leaves a residual above ``MAX_RESIDUAL``: it then counts as nothing found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from uae.scenes.scene import (
    BACKGROUNDS,
    CELL,
    COLORS,
    GRID,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    WORDS,
    Object,
    Scene,
    Word,
    background_pixels,
    cell_slice,
    ink,
    object_coverage,
    paint,
    word_coverage,
)

MIN_CONFIDENCE = 0.45
MAX_RESIDUAL = 0.11  # root mean square over a cell's pixels, of [0, 1]


@dataclass(frozen=True)
class Found:
    """What the nearest picture of one cell shows: an ``Object``, a ``Word`` or None for nothing."""

    cell: int
    content: Object | Word | None
    confidence: float
    residual: float

    @property
    def sure(self) -> bool:
        return self.confidence >= MIN_CONFIDENCE and self.residual <= MAX_RESIDUAL


@dataclass(frozen=True)
class Detection:
    """What an image shows, cell by cell, on which background."""

    background: str
    background_confidence: float
    cells: tuple[Found, ...]

    @property
    def objects(self) -> tuple[Object, ...]:
        """The objects the detector is sure of, in reading order."""
        return tuple(f.content for f in self.cells if f.sure and isinstance(f.content, Object))

    @property
    def word(self) -> Word | None:
        """The word the detector is sure of; the surest if it sees several."""
        words = [f for f in self.cells if f.sure and isinstance(f.content, Word)]
        return max(words, key=lambda f: f.confidence).content if words else None  # type: ignore[return-value]

    @property
    def unsure(self) -> tuple[int, ...]:
        """Cells it cannot tell."""
        return tuple(f.cell for f in self.cells if not f.sure)

    @property
    def scene(self) -> Scene:
        """The scene the image shows, as far as the detector is sure."""
        return Scene(self.background, self.objects, self.word)


@dataclass(frozen=True)
class _Templates:
    contents: tuple[tuple[str, ...] | None, ...]  # None, ("word", text) or (shape, color, size)
    pixels: Float[Tensor, "N 768"]  # N = 6 backgrounds x 169 contents
    squares: Float[Tensor, " N"]
    distances: Float[Tensor, "6 169 169"]  # between the contents on one background; infinite to itself


@cache
def _templates() -> _Templates:
    objects = [(shape, color, size) for shape in SHAPES for color in COLORS for size in SIZES]
    contents = (None, *objects, *(("word", text) for text in WORDS))
    drawn = np.stack([_draw_cell(background, content) for background in BACKGROUNDS for content in contents])
    pixels = torch.from_numpy(drawn.reshape(len(drawn), -1).astype(np.float32) / 255.0)
    per_background = rearrange(pixels.double(), "(b n) d -> b n d", b=len(BACKGROUNDS))
    distances = torch.cdist(per_background, per_background, compute_mode="donot_use_mm_for_euclid_dist").square()
    distances.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    return _Templates(contents, pixels, pixels.square().sum(1), distances.float())


def _draw_cell(background: str, content: tuple[str, ...] | None) -> np.ndarray:
    pixels = background_pixels(background)[cell_slice(0)]
    if content is None:
        return pixels
    if content[0] == "word":
        return paint(pixels, word_coverage(content[1]), ink(background))
    shape, color, size = content
    return paint(pixels, object_coverage(shape, size), np.array(COLORS[color]))


@torch.no_grad()
def detect(images: Float[Tensor, "B 3 48 48"]) -> list[Detection]:
    """What each image (values in [0, 1]) shows.

    Raises:
        ValueError: when the images are not 48x48 RGB.
    """
    if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"expected images [B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}] in [0, 1], got {list(images.shape)}")
    templates = _templates()
    cells = rearrange(images.float().cpu(), "b c (i y) (j x) -> b (i j) (y x c)", y=CELL, x=CELL)
    errors = cells.square().sum(-1, keepdim=True) - 2 * cells @ templates.pixels.T + templates.squares
    errors = rearrange(errors.clamp_min(0), "b k (g n) -> b g k n", g=len(BACKGROUNDS))
    totals = errors.min(-1).values.sum(-1)  # [B, 6]
    background = totals.argmin(1)
    runner_up = totals.topk(2, largest=False).values[:, 1]
    background_confidence = 1 - totals.gather(1, background[:, None])[:, 0] / runner_up.clamp_min(1e-9)
    errors = errors[torch.arange(len(images)), background]  # [B, 9, 169]
    least, best = errors.min(-1)
    margins = (errors - least[..., None]) / templates.distances[background[:, None], best]
    margins.scatter_(-1, best[..., None], float("inf"))
    confidence = margins.min(-1).values
    residual = (least / cells.shape[-1]).sqrt()
    names = tuple(BACKGROUNDS)
    return [
        Detection(
            names[int(background[b])],
            float(background_confidence[b]),
            tuple(
                Found(k, _content(k, templates.contents[int(best[b, k])]), float(confidence[b, k]), float(residual[b, k]))
                for k in range(GRID * GRID)
            ),
        )
        for b in range(len(images))
    ]


def _content(cell: int, content: tuple[str, ...] | None) -> Object | Word | None:
    if content is None:
        return None
    if content[0] == "word":
        return Word(cell, content[1])
    return Object(cell, *content)
