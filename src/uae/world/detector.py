"""The exact detector of the world: which objects an image shows, and how sure that is.

Analysis by synthesis. A cell can show 169 things (nothing, 144 objects, 24 words) on each of 6
backgrounds, and each of these has exactly one picture. The detector takes the background, then for
each cell the picture ``t1``, that is nearest in squared error to the cell ``x``. Its confidence
against another picture ``t2`` is

    c = (|x - t2|^2 - |x - t1|^2) / |t1 - t2|^2

which is 1 when ``x`` equals ``t1`` and 0 halfway between the two, whatever the contrast or size of
what distinguishes them; the reported confidence is the smallest over all ``t2``. Among these are
pictures that no scene contains but a bad image may: for an empty cell the *ghosts*, what is left of
everything when blurred, up to a tint of the whole cell; for anything else the *impostors*, other
contents that moved by a pixel or faded and now look most like it. A cell is *unsure*, and counts as
empty, when its confidence is below ``MIN_CONFIDENCE`` or when even ``t1`` leaves a residual
above ``MAX_RESIDUAL``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from uae.world.scene import (
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
    blend,
    cell_slice,
    ink,
    object_coverage,
    word_coverage,
)

MIN_CONFIDENCE = 0.45
MAX_RESIDUAL = 0.11  # root mean square over a cell's pixels, of [0, 1]
GHOST_BLUR = 2.0  # pixels, standard deviation
FADED = (0.3, 0.4, 0.5, 0.6)  # shares of an object's contrast that are left
_BATCH_SIZE = 256  # images at a time


@dataclass(frozen=True)
class CellReading:
    """What the nearest picture of one cell shows: an ``Object``, a ``Word`` or None for nothing."""

    cell: int
    content: Object | Word | None
    confidence: float
    residual: float

    @property
    def is_sure(self) -> bool:
        return self.confidence >= MIN_CONFIDENCE and self.residual <= MAX_RESIDUAL


@dataclass(frozen=True)
class Detection:
    """What an image shows, cell by cell, on which background."""

    background: str
    background_confidence: float
    cells: tuple[CellReading, ...]

    @property
    def objects(self) -> tuple[Object, ...]:
        """The objects the detector is sure of, in reading order."""
        contents = [cell.content for cell in self.cells if cell.is_sure]
        return tuple(content for content in contents if isinstance(content, Object))

    @property
    def word(self) -> Word | None:
        """The word the detector is sure of; the surest if there are several."""
        words = [c for c in self.cells if c.is_sure and isinstance(c.content, Word)]
        return max(words, key=lambda c: c.confidence).content if words else None  # type: ignore

    @property
    def unsure_cells(self) -> tuple[int, ...]:
        """Cells it cannot tell."""
        return tuple(cell.cell for cell in self.cells if not cell.is_sure)

    @property
    def scene(self) -> Scene:
        """The scene the image shows, as far as the detector is sure."""
        return Scene(self.background, self.objects, self.word)


@dataclass(frozen=True)
class _Templates:
    """The pictures of a cell. Impostors are listed by background."""

    contents: tuple[tuple[str, ...] | None, ...]
    """None, ("word", text) or (shape, color, size)."""
    pixels: Float[Tensor, "N 768"]
    """N = 6 backgrounds x 169 contents."""
    squares: Float[Tensor, " N"]
    distances: Float[Tensor, "6 169 169"]
    """Between the contents on one background; infinite to itself."""
    ghosts: Float[Tensor, "6 168 768"]
    """As differences from the empty cell, without their mean colour."""
    impostors: tuple[Float[Tensor, "_ 768"], ...]
    """As differences from the content that each looks like."""
    impostor_contents: tuple[Int[Tensor, " _"], ...]
    """Index of that content."""


@cache
def _templates() -> _Templates:
    objects = [(shape, color, size) for shape in SHAPES for color in COLORS for size in SIZES]
    contents = (None, *objects, *(("word", text) for text in WORDS))
    cells = np.stack(
        [_draw_cell(background, content) for background in BACKGROUNDS for content in contents]
    )
    pixels = torch.from_numpy(cells.reshape(len(cells), -1).astype(np.float32) / 255.0)
    per_background = rearrange(pixels.double(), "(b n) d -> b n d", b=len(BACKGROUNDS))
    distances = torch.cdist(
        per_background, per_background, compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    distances.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    images = rearrange(pixels, "(b n) (y x c) -> b n c y x", b=len(BACKGROUNDS), y=CELL, x=CELL)
    differences = images - images[:, :1]
    impostors = [_impostors(of_background) for of_background in differences]
    return _Templates(
        contents,
        pixels,
        pixels.square().sum(1),
        distances.float(),
        _ghosts(differences[:, 1:]),
        tuple(altered for altered, _ in impostors),
        tuple(lookalike for _, lookalike in impostors),
    )


def _ghosts(differences: Float[Tensor, "6 168 3 16 16"]) -> Float[Tensor, "6 168 768"]:
    """Blurred within the cell; what leaves it is lost."""
    positions = torch.arange(CELL)
    kernel = torch.exp(-(positions[:, None] - positions[None]).square() / (2 * GHOST_BLUR**2))
    kernel = kernel / (GHOST_BLUR * (2 * torch.pi) ** 0.5)
    blurred = torch.einsum("yv, bncvu, xu -> bncyx", kernel, differences, kernel)
    return rearrange(blurred - blurred.mean((-2, -1), keepdim=True), "b n c y x -> b n (y x c)")


def _impostors(
    differences: Float[Tensor, "169 3 16 16"],
) -> tuple[Float[Tensor, "M 768"], Int[Tensor, " M"]]:
    """Contents that, moved by a pixel or faded, are nearest to another content.

    As differences from that content, and its index.
    """
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    flat = rearrange(differences, "n c y x -> n (y x c)")
    moved = [
        rearrange(differences.roll(shift, (-2, -1)), "n c y x -> n (y x c)") for shift in shifts
    ]
    altered = torch.cat([*moved, *(share * flat for share in FADED)])
    originals = torch.arange(len(altered)) % len(flat)
    nearest = torch.cdist(altered, flat).argmin(-1)
    is_impostor = (nearest != originals) & (nearest != 0)
    lookalike = nearest[is_impostor]
    return altered[is_impostor] - flat[lookalike], lookalike


def _draw_cell(background: str, content: tuple[str, ...] | None) -> np.ndarray:
    pixels = background_pixels(background)[cell_slice(0)]
    if content is None:
        return pixels
    if content[0] == "word":
        return blend(pixels, word_coverage(content[1]), ink(background))
    shape, color, size = content
    return blend(pixels, object_coverage(shape, size), np.array(COLORS[color]))


@torch.no_grad()
def detect(images: Float[Tensor, "B 3 48 48"]) -> list[Detection]:
    """What each image (values in [0, 1]) shows.

    Raises:
        ValueError: when the images are not 48x48 RGB.
    """
    if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"expected images [B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}] in [0, 1], got "
            f"{list(images.shape)}"
        )
    batches = images.split(_BATCH_SIZE)
    return [detection for batch in batches for detection in _detect_batch(batch)]


def _detect_batch(images: Float[Tensor, "B 3 48 48"]) -> list[Detection]:
    templates = _templates()
    cells = rearrange(images.float().cpu(), "b c (i y) (j x) -> b (i j) (y x c)", y=CELL, x=CELL)
    squares = cells.square().sum(-1, keepdim=True)
    errors = squares - 2 * cells @ templates.pixels.T + templates.squares
    errors = rearrange(errors.clamp_min(0), "b k (g n) -> b g k n", g=len(BACKGROUNDS))
    totals = errors.min(-1).values.sum(-1)  # [B, 6]
    background = totals.argmin(1)
    runner_up = totals.topk(2, largest=False).values[:, 1].clamp_min(1e-9)
    background_confidence = 1 - totals.gather(1, background[:, None])[:, 0] / runner_up
    errors = errors[torch.arange(len(images)), background]  # [B, 9, 169]
    least, nearest = errors.min(-1)
    margins = (errors - least[..., None]) / templates.distances[background[:, None], nearest]
    margins.scatter_(-1, nearest[..., None], float("inf"))
    unreal_confidence = _confidence_against_unreal(cells, background, nearest)
    confidence = torch.minimum(margins.min(-1).values, unreal_confidence)
    residual = (least / cells.shape[-1]).sqrt()
    names = tuple(BACKGROUNDS)

    def reading(b: int, cell: int) -> CellReading:
        content = _content(cell, templates.contents[int(nearest[b, cell])])
        return CellReading(cell, content, float(confidence[b, cell]), float(residual[b, cell]))

    return [
        Detection(
            names[int(background[b])],
            float(background_confidence[b]),
            tuple(reading(b, cell) for cell in range(GRID * GRID)),
        )
        for b in range(len(images))
    ]


def _confidence_against_unreal(
    cells: Float[Tensor, "B 9 768"], background: Int[Tensor, " B"], nearest: Int[Tensor, "B 9"]
) -> Float[Tensor, "B 9"]:
    """The confidence of the nearest pictures against ghosts and impostors.

    With ``e = x - t1`` and ``d = t2 - t1``, the margin of ``t1`` over ``t2`` is ``1 - 2 <e, d> /
    |d|^2``.
    """
    templates = _templates()
    pixels = rearrange(templates.pixels, "(b n) d -> b n d", b=len(BACKGROUNDS))
    confidence = torch.empty(nearest.shape)
    for b in background.unique().tolist():
        rows = background == b
        content = nearest[rows]
        residuals = cells[rows] - pixels[b][content]
        per_channel = rearrange(residuals, "n k (p c) -> n k p c", c=3)
        untinted = per_channel - per_channel.mean(2, keepdim=True)
        untinted = rearrange(untinted, "n k p c -> n k (p c)")
        impostor_shares = _projections(residuals, templates.impostors[b])
        is_lookalike = templates.impostor_contents[b] == content[..., None]
        impostor_shares = torch.where(is_lookalike, impostor_shares, 0.0)
        ghost_shares = _projections(untinted, templates.ghosts[b])
        largest = torch.where(content == 0, ghost_shares.amax(-1), impostor_shares.amax(-1))
        confidence[rows] = 1 - 2 * largest
    return confidence


def _projections(
    residuals: Float[Tensor, "n K 768"], differences: Float[Tensor, "M 768"]
) -> Float[Tensor, "n K M"]:
    """How far each cell's residual goes along each difference: 0 not at all, 1 all the way."""
    return residuals @ differences.T / differences.square().sum(-1)


def _content(cell: int, content: tuple[str, ...] | None) -> Object | Word | None:
    if content is None:
        return None
    if content[0] == "word":
        return Word(cell, content[1])
    return Object(cell, *content)
