"""The world's language: captions at six levels of detail, questions, and reading captions back.

Captions name what they name truly; levels differ in how much they leave out, as captions on the web
do. Wording varies in articles, synonyms, separators and the place of the background. Every word is
one token.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from uae.world.scene import (
    BACKGROUNDS,
    CELLS,
    COLORS,
    GRID,
    SHAPES,
    SIZES,
    WORDS,
    Object,
    Scene,
    Word,
    pick,
    random_order,
)

LEVELS = ("gist", "count", "salient", "objects", "layout", "exhaustive")
SHORTER_LEVELS = {"objects": 0.35, "layout": 0.3, "count": 0.2, "salient": 0.1, "gist": 0.05}
"""How often a decoder is taught from each, where not from exhaustive ones."""
NUMBERS = ("zero", "one", "two", "three", "four", "five")
SIZE_WORDS = {"small": ("small", "tiny"), "medium": ("medium",), "large": ("large", "big")}
INSTRUCTIONS = {
    "default": "describe the image",
    "brief": "describe the image briefly",
    "detailed": "describe the image in full detail",
}
"""Of the captioner; ``default`` leaves the level of detail open."""

QUESTION_KINDS = ("existence", "color", "shape", "size", "count", "position", "relation", "word")

_GISTS = (
    "some shapes",
    "shapes on a background",
    "a picture of shapes",
    "a picture of some shapes on a background",
)


# --- captions ------------------------------------------------------------------------------------


def caption(scene: Scene, level: str, rng: random.Random) -> str:
    """A true caption of ``scene`` at one of ``LEVELS``.

    Raises:
        ValueError: for an unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown caption level {level!r}: expected one of {', '.join(LEVELS)}")
    if level == "gist":
        return pick(rng, _GISTS)
    if level == "count":
        return _with_background(_count_phrase(scene), scene, rng)
    if level == "salient":
        return _salient_phrase(scene, rng)
    objects = list(scene.objects) if rng.random() < 0.7 else random_order(rng, list(scene.objects))
    article, separator = rng.random() < 0.5, pick(rng, (",", "and"))
    phrases = [_object_phrase(o, level, article, rng) for o in objects]
    if scene.word:
        phrases.append(_word_phrase(scene.word, level, article))
    text = f" {separator} ".join(phrases)
    return _with_background(text, scene, rng) if level == "exhaustive" else text


def caption_level(
    exhaustive_share: float, rng: random.Random, shorter: Mapping[str, float] = SHORTER_LEVELS
) -> str:
    """The level of detail that a decoder is taught from next.

    ``shorter`` are the weights of the levels other than ``exhaustive``.
    """
    if rng.random() < exhaustive_share:
        return "exhaustive"
    return rng.choices(list(shorter), list(shorter.values()))[0]


def exhaustive_caption(scene: Scene) -> str:
    """Every attribute of everything in one fixed wording, which determines the picture."""
    phrases = [f"a {o.size} {o.color} {o.shape} {CELLS[o.cell]}" for o in scene.objects]
    if scene.word:
        phrases.append(f"the word {scene.word.text} {CELLS[scene.word.cell]}")
    return f"{' , '.join(phrases)} on {scene.background}"


def _count_phrase(scene: Scene) -> str:
    return f"{NUMBERS[len(scene.objects)]} {'shape' if len(scene.objects) == 1 else 'shapes'}"


def _salient_phrase(scene: Scene, rng: random.Random) -> str:
    """The one or two largest objects; the rest is 'other shapes'."""
    by_size = sorted(scene.objects, key=lambda o: -SIZES[o.size])
    largest = by_size[: 1 + int(rng.random() * 2)]
    text = " and ".join(f"a {o.color} {o.shape}" for o in largest)
    return text if len(largest) == len(by_size) else f"{text} and other shapes"


def _object_phrase(o: Object, level: str, article: bool, rng: random.Random) -> str:
    words = [pick(rng, SIZE_WORDS[o.size])] if level == "exhaustive" else []
    words += [o.color, o.shape]
    words += [] if level == "objects" else [CELLS[o.cell]]
    return " ".join(["a", *words] if article else words)


def _word_phrase(word: Word, level: str, article: bool) -> str:
    place = "" if level == "objects" else f" {CELLS[word.cell]}"
    return f"{'the ' if article else ''}word {word.text}{place}"


def _with_background(text: str, scene: Scene, rng: random.Random) -> str:
    place = int(rng.random() * 3)
    if place == 0:
        return f"{scene.background} background , {text}"
    if place == 1:
        return f"{text} on {scene.background}"
    return f"{text} , {scene.background} background"


# --- reading captions back -----------------------------------------------------------------------

SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word in words}


@dataclass
class Mention:
    """One object as a caption names it; None where it says nothing."""

    shape: str
    color: str | None = None
    size: str | None = None
    cell: int | None = None

    def fits(self, o: Object) -> bool:
        """Nothing stated is wrong of ``o``."""
        values = (self.shape, self.color, self.size, self.cell)
        true_values = (o.shape, o.color, o.size, o.cell)
        return all(v is None or v == true for v, true in zip(values, true_values, strict=True))

    @property
    def num_stated(self) -> int:
        """Attributes stated beside the shape."""
        return sum(value is not None for value in (self.color, self.size, self.cell))

    @property
    def is_complete(self) -> bool:
        return self.num_stated == 3


@dataclass
class CaptionReading:
    """What a caption states."""

    mentions: list[Mention]
    word: str | None = None
    background: str | None = None


def read_caption(text: str) -> CaptionReading:
    """The objects, word and background a caption names, whatever else it contains."""
    reading, size, color = CaptionReading([]), None, None
    last: Mention | None = None
    tokens = text.split()
    for i, token in enumerate(tokens):
        if token in SIZE_OF:
            size = SIZE_OF[token]
        elif token in COLORS:
            color = token
        elif token in SHAPES:
            last = Mention(token, color, size)
            reading.mentions.append(last)
            size = color = None
        elif token in WORDS and i and tokens[i - 1] == "word":
            reading.word, last = token, None
        elif token in CELLS and last is not None and last.cell is None:
            last.cell = CELLS.index(token)
        elif token in BACKGROUNDS:
            reading.background = token
    return reading


@dataclass(frozen=True)
class CaptionScore:
    """Counts over one caption: ``correct`` mentions fit an object that no better mention took."""

    mentions: int
    correct: int
    complete: int  # correct mentions that state every attribute
    objects: int
    small_objects: int
    small_complete: int


def score_caption(text: str, scene: Scene) -> CaptionScore:
    """Match each mention to at most one true object, the fullest mentions first."""
    unmatched = list(scene.objects)
    mentions = read_caption(text).mentions
    correct = complete = small_complete = 0
    for mention in sorted(mentions, key=lambda m: m.num_stated, reverse=True):
        match = next((o for o in unmatched if mention.fits(o)), None)
        if match is None:
            continue
        unmatched.remove(match)
        correct += 1
        complete += mention.is_complete
        small_complete += mention.is_complete and match.size == "small"
    small = sum(o.size == "small" for o in scene.objects)
    return CaptionScore(len(mentions), correct, complete, len(scene.objects), small, small_complete)


# --- questions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A question about a scene, with its one-word answer."""

    text: str
    answer: str
    kind: str
    small: bool = False
    """It is about a small object."""


def question(scene: Scene, kind: str, rng: random.Random) -> Question | None:
    """A question of one of ``QUESTION_KINDS``, or None where the scene allows none.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in _QUESTIONS:
        raise ValueError(
            f"unknown question kind {kind!r}: expected one of {', '.join(QUESTION_KINDS)}"
        )
    return _QUESTIONS[kind](scene, rng)


def any_question(scene: Scene, rng: random.Random) -> Question:
    """A question of a random kind."""
    while True:
        candidate = question(scene, pick(rng, QUESTION_KINDS), rng)
        if candidate:
            return candidate


def _existence_question(scene: Scene, rng: random.Random) -> Question:
    target = pick(rng, scene.objects)
    exists = rng.random() < 0.5
    shape, color = (target.shape, target.color) if exists else _absent_pair(scene, target, rng)
    text, answer = f"is there a {color} {shape} ?", "yes" if exists else "no"
    return Question(text, answer, "existence", exists and _is_small(target))


def _absent_pair(scene: Scene, o: Object, rng: random.Random) -> tuple[str, str]:
    """A pair that the scene lacks, of the same shape or colour as ``o``: half a look won't do."""
    present = {(p.shape, p.color) for p in scene.objects}
    pairs = [(s, c) for s in SHAPES for c in COLORS if (s == o.shape) != (c == o.color)]
    return pick(rng, [pair for pair in pairs if pair not in present])


def _color_question(scene: Scene, rng: random.Random) -> Question:
    o = pick(rng, scene.objects)
    unique = sum(p.shape == o.shape for p in scene.objects) == 1 and rng.random() < 0.5
    subject = f"the {o.shape}" if unique else f"the shape {CELLS[o.cell]}"
    return Question(f"what color is {subject} ?", o.color, "color", _is_small(o))


def _shape_question(scene: Scene, rng: random.Random) -> Question:
    o = pick(rng, scene.objects)
    return Question(f"what shape is {CELLS[o.cell]} ?", o.shape, "shape", _is_small(o))


def _size_question(scene: Scene, rng: random.Random) -> Question:
    o = pick(rng, scene.objects)
    return Question(f"what size is the shape {CELLS[o.cell]} ?", o.size, "size", _is_small(o))


def _count_question(scene: Scene, rng: random.Random) -> Question:
    kind = int(rng.random() * 3)
    if kind == 0:
        return Question("how many shapes ?", NUMBERS[len(scene.objects)], "count")
    target = pick(rng, scene.objects)
    if kind == 1:
        color = target.color if rng.random() < 0.7 else pick(rng, tuple(COLORS))
        number = sum(o.color == color for o in scene.objects)
        return Question(f"how many {color} shapes ?", NUMBERS[number], "count")
    size = target.size if rng.random() < 0.7 else pick(rng, tuple(SIZES))
    number = sum(o.size == size for o in scene.objects)
    is_about_small = size == "small" and number > 0
    return Question(f"how many {size} shapes ?", NUMBERS[number], "count", is_about_small)


def _position_question(scene: Scene, rng: random.Random) -> Question | None:
    unique = _unique_objects(scene)
    if not unique:
        return None
    o = pick(rng, unique)
    return Question(f"where is the {o.color} {o.shape} ?", CELLS[o.cell], "position", _is_small(o))


def _relation_question(scene: Scene, rng: random.Random) -> Question | None:
    axis = int(rng.random() * 2)  # 0: rows, 1: columns
    places = {o: divmod(o.cell, GRID)[axis] for o in _unique_objects(scene)}
    couples = [(a, b) for a in places for b in places if places[a] != places[b]]
    if not couples:
        return None
    a, b = pick(rng, couples)
    relation = "left of" if axis else "above"
    text = f"is the {a.color} {a.shape} {relation} the {b.color} {b.shape} ?"
    answer = "yes" if places[a] < places[b] else "no"
    return Question(text, answer, "relation", _is_small(a) or _is_small(b))


def _unique_objects(scene: Scene) -> list[Object]:
    """The objects that shape and colour single out."""
    pairs = [(o.shape, o.color) for o in scene.objects]
    return [o for o, pair in zip(scene.objects, pairs, strict=True) if pairs.count(pair) == 1]


def _word_question(scene: Scene, rng: random.Random) -> Question:
    if scene.word and rng.random() < 0.8:
        return Question("what is the word ?", scene.word.text, "word")
    return Question("is there a word ?", "yes" if scene.word else "no", "word")


def _is_small(o: Object) -> bool:
    return o.size == "small"


_QUESTIONS = {
    "existence": _existence_question,
    "color": _color_question,
    "shape": _shape_question,
    "size": _size_question,
    "count": _count_question,
    "position": _position_question,
    "relation": _relation_question,
    "word": _word_question,
}

_FUNCTION_WORDS = """
a the , and . ? on background some shapes shape picture of other word is there what color size how
many where left above below right yes no describe image briefly in full
detail user assistant generate system
"""
_CONTENT_WORDS = (*SHAPES, *COLORS, *SIZE_OF, *CELLS, *BACKGROUNDS, *NUMBERS, *WORDS)
VOCABULARY: tuple[str, ...] = tuple(dict.fromkeys((*_FUNCTION_WORDS.split(), *_CONTENT_WORDS)))
