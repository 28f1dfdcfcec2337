"""The embedded world: scenes of a few shapes, and sometimes a word, drawn at 48x48 pixels.

A scene is fully described by its background, its objects (shape, colour, size, cell of a 3x3 grid)
and an optional word. Nothing is left to chance between a description and its picture, so an
exhaustive caption determines the image. Everything is integer arithmetic seeded through
``random.Random``: one index gives the same scene and the same pixels on every machine.

Splits cannot overlap: a hash of the scene's canonical form assigns it to train, validation or test,
and the ``HELD_OUT_PAIRS`` of shape and colour appear in the ``unseen`` split only.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

import numpy as np

IMAGE_SIZE = 48  # pixels
GRID = 3
CELL = IMAGE_SIZE // GRID  # pixels

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
Color = tuple[int, int, int]
COLORS: dict[str, Color] = {
    "red": (216, 32, 32),
    "green": (32, 160, 56),
    "blue": (40, 72, 224),
    "yellow": (248, 216, 24),
    "orange": (248, 128, 16),
    "purple": (136, 48, 184),
    "cyan": (40, 200, 224),
    "pink": (255, 136, 200),
}
SIZES: dict[str, int] = {"small": 5, "medium": 9, "large": 14}  # width in pixels
CELLS = (
    "top-left",
    "top",
    "top-right",
    "left",
    "center",
    "right",
    "bottom-left",
    "bottom",
    "bottom-right",
)
BACKGROUNDS: dict[str, tuple[Color, Color]] = {  # two tones, equal when plain
    "white": ((248, 248, 248), (248, 248, 248)),
    "gray": ((150, 150, 150), (150, 150, 150)),
    "black": ((16, 16, 16), (16, 16, 16)),
    "beige": ((226, 206, 172), (226, 206, 172)),
    "striped": ((200, 204, 212), (236, 240, 244)),
    "checkered": ((84, 88, 96), (60, 64, 72)),
}
WORDS = (
    "sun",
    "cat",
    "dog",
    "sky",
    "map",
    "key",
    "box",
    "fox",
    "go",
    "up",
    "hi",
    "no",
    "moon",
    "tree",
    "fish",
    "bird",
    "star",
    "milk",
    "west",
    "jump",
    "calm",
    "quiz",
    "vast",
    "lake",
)
MAX_OBJECTS = 5
HELD_OUT_PAIRS = frozenset(
    {
        ("ring", "yellow"),
        ("cross", "pink"),
        ("triangle", "cyan"),
        ("diamond", "orange"),
        ("square", "purple"),
    }
)

Split = Literal["train", "validation", "test", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "unseen")
_WORD_SHARE = 0.2  # of scenes

_FONT = {  # rows of three pixels, top to bottom
    "a": "010 101 111 101 101",
    "b": "110 101 110 101 110",
    "c": "011 100 100 100 011",
    "d": "110 101 101 101 110",
    "e": "111 100 110 100 111",
    "f": "111 100 110 100 100",
    "g": "011 100 101 101 011",
    "h": "101 101 111 101 101",
    "i": "111 010 010 010 111",
    "j": "001 001 001 101 010",
    "k": "101 101 110 101 101",
    "l": "100 100 100 100 111",
    "m": "101 111 111 101 101",
    "n": "110 101 101 101 101",
    "o": "010 101 101 101 010",
    "p": "110 101 110 100 100",
    "q": "010 101 101 011 001",
    "r": "110 101 110 110 101",
    "s": "011 100 010 001 110",
    "t": "111 010 010 010 010",
    "u": "101 101 101 101 111",
    "v": "101 101 101 101 010",
    "w": "101 101 111 111 101",
    "x": "101 101 010 101 101",
    "y": "101 101 010 010 010",
    "z": "111 001 010 100 111",
}


@dataclass(frozen=True, order=True)
class Object:
    """One shape: where it is (index into ``CELLS``) and what it looks like."""

    cell: int
    shape: str
    color: str
    size: str


@dataclass(frozen=True, order=True)
class Word:
    """A word in rendered letters, in a cell of its own: black on light backgrounds, else white."""

    cell: int
    text: str


@dataclass(frozen=True)
class Scene:
    """A picture's full description. ``objects`` are in reading order, at most one per cell."""

    background: str
    objects: tuple[Object, ...]
    word: Word | None = None

    def key(self) -> str:
        """The canonical form, unique to the scene."""
        objects = ";".join(f"{o.cell},{o.shape},{o.color},{o.size}" for o in self.objects)
        word = f"{self.word.cell},{self.word.text}" if self.word else ""
        return f"{self.background}|{objects}|{word}"

    @property
    def contents(self) -> list[Object | Word | None]:
        """What each cell holds, None for nothing."""
        by_cell: dict[int, Object | Word] = {o.cell: o for o in self.objects}
        if self.word:
            by_cell[self.word.cell] = self.word
        return [by_cell.get(cell) for cell in range(GRID * GRID)]


def split_of(scene: Scene) -> Split:
    """The one split a scene belongs to, decided by its content alone."""
    if any((o.shape, o.color) in HELD_OUT_PAIRS for o in scene.objects):
        return "unseen"
    bucket = int.from_bytes(hashlib.sha256(scene.key().encode()).digest()[:4], "big") % 100
    return "test" if bucket >= 95 else "validation" if bucket >= 90 else "train"


def scene_at(
    split: Split,
    index: int,
    *,
    seed: int = 0,
    num_objects: int | None = None,
    with_word: bool | None = None,
) -> Scene:
    """The ``index``-th scene of a split.

    ``num_objects`` (1-5) and ``with_word`` fix what is drawn at random otherwise.

    Raises:
        ValueError: for an unknown split or an impossible number of objects.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if num_objects is not None and not 1 <= num_objects <= MAX_OBJECTS:
        raise ValueError(f"num_objects must be 1 to {MAX_OBJECTS}, got {num_objects}")
    rng = random.Random(f"uae scene {seed} {split} {index}")
    while True:
        scene = _draw_scene(rng, split, num_objects, with_word)
        if split_of(scene) == split:
            return scene


def first_scenes(split: Split, number: int, *, with_word: bool | None = None) -> list[Scene]:
    """The first ``number`` scenes of a split."""
    return [scene_at(split, i, with_word=with_word) for i in range(number)]


T = TypeVar("T")


def pick(rng: random.Random, items: tuple[T, ...] | list[T]) -> T:
    """A uniform choice through ``rng.random()``, whose stream alone Python promises to keep."""
    return items[int(rng.random() * len(items))]


def random_order(rng: random.Random, items: list[T]) -> list[T]:
    """A random order, by ``rng.random()`` alone as in ``pick``."""
    return [items[i] for _, i in sorted((rng.random(), i) for i in range(len(items)))]


def _draw_scene(
    rng: random.Random, split: Split, num_objects: int | None, with_word: bool | None
) -> Scene:
    count = num_objects or 1 + int(rng.random() * MAX_OBJECTS)
    has_word = rng.random() < _WORD_SHARE if with_word is None else with_word
    cells = random_order(rng, list(range(GRID * GRID)))
    objects = [
        _draw_object(rng, cell, unseen=split == "unseen" and i == 0)
        for i, cell in enumerate(cells[:count])
    ]
    word = Word(cells[count], pick(rng, WORDS)) if has_word else None
    return Scene(pick(rng, tuple(BACKGROUNDS)), tuple(sorted(objects)), word)


def _draw_object(rng: random.Random, cell: int, *, unseen: bool) -> Object:
    shape, color = pick(rng, _UNSEEN_PAIRS if unseen else SEEN_PAIRS)
    return Object(cell, shape, color, pick(rng, tuple(SIZES)))


SEEN_PAIRS = [(s, c) for s in SHAPES for c in COLORS if (s, c) not in HELD_OUT_PAIRS]
_UNSEEN_PAIRS = sorted(HELD_OUT_PAIRS)


# --- drawing -------------------------------------------------------------------------------------

_SUB = 8  # sub-pixels per pixel edge: coverage is a multiple of 1/64


@cache
def object_coverage(shape: str, size: str) -> np.ndarray:
    """How much of each pixel of a cell a shape covers: ``[16, 16]`` integers, 0 to 64."""
    centre = CELL * _SUB  # in half sub-pixels, so that sub-pixel centres are odd integers
    axis = 2 * np.arange(CELL * _SUB) + 1 - centre
    x, y = axis[None, :], axis[:, None]
    r = SIZES[size] * _SUB
    is_inside = {
        "circle": x * x + y * y <= r * r,
        "square": (8 * abs(x) <= 7 * r) & (8 * abs(y) <= 7 * r),
        "triangle": (y <= r) & (2 * abs(x) <= y + r),
        "diamond": abs(x) + abs(y) <= r,
        "cross": ((3 * abs(x) <= r) & (abs(y) <= r)) | ((3 * abs(y) <= r) & (abs(x) <= r)),
        "ring": (x * x + y * y <= r * r) & (100 * (x * x + y * y) >= 36 * r * r),
    }[shape]
    return is_inside.reshape(CELL, _SUB, CELL, _SUB).sum(axis=(1, 3))


@cache
def word_coverage(text: str) -> np.ndarray:
    """Letters of 3x5 pixels, one apart, centred in a cell: ``[16, 16]`` integers, 0 or 64."""
    width = 4 * len(text) - 1
    canvas = np.zeros((CELL, CELL), dtype=np.int64)
    left, top = (CELL - width) // 2, (CELL - 5) // 2
    for i, letter in enumerate(text):
        glyph = np.array([[int(bit) for bit in row] for row in _FONT[letter].split()])
        canvas[top : top + 5, left + 4 * i : left + 4 * i + 3] = glyph
    return canvas * _SUB * _SUB


@cache
def background_pixels(background: str) -> np.ndarray:
    """``[48, 48, 3]`` integers 0 to 255: one tone, bands of 4 pixels, or checks of 4 pixels."""
    first, second = (np.array(tone) for tone in BACKGROUNDS[background])
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] // 4
    odd = (x + y) % 2 if background == "checkered" else y % 2
    return np.where(odd[..., None] == 1, second, first)


def ink(background: str) -> np.ndarray:
    """The colour of letters on a background: whichever of black and white is farther from it."""
    return np.array((248,) * 3 if np.mean(BACKGROUNDS[background]) < 128 else (16,) * 3)


def blend(pixels: np.ndarray, coverage: np.ndarray, color: np.ndarray) -> np.ndarray:
    """``color`` over ``pixels``, as much as ``coverage`` (0 to 64) says, rounded to integers."""
    full = _SUB * _SUB
    return (pixels * (full - coverage[..., None]) + color * coverage[..., None] + full // 2) // full


def cell_slice(cell: int) -> tuple[slice, slice]:
    """Rows and columns of a cell."""
    row, column = divmod(cell, GRID)
    return slice(row * CELL, (row + 1) * CELL), slice(column * CELL, (column + 1) * CELL)


def render(scene: Scene) -> np.ndarray:
    """The scene's picture: ``[48, 48, 3]`` uint8."""
    pixels = background_pixels(scene.background).copy()
    for o in scene.objects:
        cell = cell_slice(o.cell)
        coverage, color = object_coverage(o.shape, o.size), np.array(COLORS[o.color])
        pixels[cell] = blend(pixels[cell], coverage, color)
    if scene.word:
        cell = cell_slice(scene.word.cell)
        pixels[cell] = blend(pixels[cell], word_coverage(scene.word.text), ink(scene.background))
    return pixels.astype(np.uint8)


def render_batch(scenes: list[Scene]) -> np.ndarray:
    """``[B, 3, 48, 48]`` float32 in [0, 1]."""
    stacked = np.stack([render(scene) for scene in scenes])
    return stacked.transpose(0, 3, 1, 2).astype(np.float32) / 255.0
