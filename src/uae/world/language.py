"""What is said of scenes: captions at six levels of detail, questions with answers, and reading
captions back.

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
    shuffled,
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
"""What the captioner is asked; ``default`` leaves the level open."""

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
        return _salient(scene, rng)
    objects = list(scene.objects) if rng.random() < 0.7 else shuffled(rng, list(scene.objects))
    article, separator = rng.random() < 0.5, pick(rng, (",", "and"))
    phrases = [_object_phrase(o, level, article, rng) for o in objects]
    if scene.word:
        phrases.append(_word_phrase(scene.word, level, article))
    text = f" {separator} ".join(phrases)
    return _with_background(text, scene, rng) if level == "exhaustive" else text


def caption_level(
    exhaustive_share: float, rng: random.Random, shorter: Mapping[str, float] = SHORTER_LEVELS
) -> str:
    """The level of detail that a decoder is taught from next; ``shorter`` are the weights of the
    other levels."""
    if rng.random() < exhaustive_share:
        return "exhaustive"
    return rng.choices(list(shorter), list(shorter.values()))[0]


def exhaustive_caption(scene: Scene) -> str:
    """Every attribute of everything, in reading order, in one fixed wording: determines the
    picture."""
    phrases = [f"a {o.size} {o.color} {o.shape} {CELLS[o.cell]}" for o in scene.objects]
    if scene.word:
        phrases.append(f"the word {scene.word.text} {CELLS[scene.word.cell]}")
    return f"{' , '.join(phrases)} on {scene.background}"


def _count_phrase(scene: Scene) -> str:
    return f"{NUMBERS[len(scene.objects)]} {'shape' if len(scene.objects) == 1 else 'shapes'}"


def _salient(scene: Scene, rng: random.Random) -> str:
    """The one or two largest objects; the rest is 'other shapes'."""
    by_size = sorted(scene.objects, key=lambda o: -SIZES[o.size])
    named = by_size[: 1 + int(rng.random() * 2)]
    text = " and ".join(f"a {o.color} {o.shape}" for o in named)
    return text if len(named) == len(by_size) else f"{text} and other shapes"


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
    return (
        f"{text} on {scene.background}" if place == 1 else f"{text} , {scene.background} background"
    )


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
        stated = (
            (self.shape, o.shape),
            (self.color, o.color),
            (self.size, o.size),
            (self.cell, o.cell),
        )
        return all(said is None or said == true for said, true in stated)

    @property
    def is_complete(self) -> bool:
        return None not in (self.color, self.size, self.cell)


@dataclass
class Reading:
    """What a caption states."""

    mentions: list[Mention]
    word: str | None = None
    background: str | None = None


def read_caption(text: str) -> Reading:
    """The objects, word and background a caption names, whatever else it contains."""
    reading, size, color = Reading([]), None, None
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
    left = list(scene.objects)
    mentions = read_caption(text).mentions
    correct = complete = small_complete = 0
    stated = lambda m: sum(v is not None for v in (m.color, m.size, m.cell))  # noqa: E731 - a sort key
    for mention in sorted(mentions, key=stated, reverse=True):
        match = next((o for o in left if mention.fits(o)), None)
        if match is None:
            continue
        left.remove(match)
        correct += 1
        complete += mention.is_complete
        small_complete += mention.is_complete and match.size == "small"
    small = sum(o.size == "small" for o in scene.objects)
    return CaptionScore(len(mentions), correct, complete, len(scene.objects), small, small_complete)


# --- questions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A question about a scene with its one-word answer; ``small`` when it is about a small
    object."""

    text: str
    answer: str
    kind: str
    small: bool = False


def question(scene: Scene, kind: str, rng: random.Random) -> Question | None:
    """A question of one of ``QUESTION_KINDS``, or None where the scene allows none.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in _ASK:
        raise ValueError(
            f"unknown question kind {kind!r}: expected one of {', '.join(QUESTION_KINDS)}"
        )
    return _ASK[kind](scene, rng)


def any_question(scene: Scene, rng: random.Random) -> Question:
    """A question of a random kind."""
    while True:
        asked = question(scene, pick(rng, QUESTION_KINDS), rng)
        if asked:
            return asked


def _existence(scene: Scene, rng: random.Random) -> Question:
    target = pick(rng, scene.objects)
    true = rng.random() < 0.5
    shape, color = (target.shape, target.color) if true else _absent_pair(scene, target, rng)
    return Question(
        f"is there a {color} {shape} ?",
        "yes" if true else "no",
        "existence",
        true and _is_small(target),
    )


def _absent_pair(scene: Scene, near: Object, rng: random.Random) -> tuple[str, str]:
    """A pair the scene lacks that shares the shape or the colour of one it has: not answerable by
    half a look."""
    present = {(o.shape, o.color) for o in scene.objects}
    pairs = [(s, c) for s in SHAPES for c in COLORS if (s == near.shape) != (c == near.color)]
    return pick(rng, [pair for pair in pairs if pair not in present])


def _color(scene: Scene, rng: random.Random) -> Question:
    o = pick(rng, scene.objects)
    unique = sum(p.shape == o.shape for p in scene.objects) == 1 and rng.random() < 0.5
    subject = f"the {o.shape}" if unique else f"the shape {CELLS[o.cell]}"
    return Question(f"what color is {subject} ?", o.color, "color", _is_small(o))


def _shape(scene: Scene, rng: random.Random) -> Question:
    o = pick(rng, scene.objects)
    return Question(f"what shape is {CELLS[o.cell]} ?", o.shape, "shape", _is_small(o))


def _size(scene: Scene, rng: random.Random) -> Question:
    o = pick(rng, scene.objects)
    return Question(f"what size is the shape {CELLS[o.cell]} ?", o.size, "size", _is_small(o))


def _count(scene: Scene, rng: random.Random) -> Question:
    kind = int(rng.random() * 3)
    if kind == 0:
        return Question("how many shapes ?", NUMBERS[len(scene.objects)], "count")
    near = pick(rng, scene.objects)
    if kind == 1:
        color = near.color if rng.random() < 0.7 else pick(rng, tuple(COLORS))
        return Question(
            f"how many {color} shapes ?",
            NUMBERS[sum(o.color == color for o in scene.objects)],
            "count",
        )
    size = near.size if rng.random() < 0.7 else pick(rng, tuple(SIZES))
    number = sum(o.size == size for o in scene.objects)
    return Question(
        f"how many {size} shapes ?", NUMBERS[number], "count", size == "small" and number > 0
    )


def _position(scene: Scene, rng: random.Random) -> Question | None:
    pairs = [(o.shape, o.color) for o in scene.objects]
    unique = [o for o, pair in zip(scene.objects, pairs, strict=True) if pairs.count(pair) == 1]
    if not unique:
        return None
    o = pick(rng, unique)
    return Question(f"where is the {o.color} {o.shape} ?", CELLS[o.cell], "position", _is_small(o))


def _relation(scene: Scene, rng: random.Random) -> Question | None:
    pairs = [(o.shape, o.color) for o in scene.objects]
    unique = [o for o, pair in zip(scene.objects, pairs, strict=True) if pairs.count(pair) == 1]
    axis = int(rng.random() * 2)  # 0: rows, 1: columns
    place = lambda o: divmod(o.cell, GRID)[axis]  # noqa: E731 - a key
    couples = [(a, b) for a in unique for b in unique if place(a) != place(b)]
    if not couples:
        return None
    a, b = pick(rng, couples)
    relation = "left of" if axis else "above"
    text = f"is the {a.color} {a.shape} {relation} the {b.color} {b.shape} ?"
    return Question(
        text, "yes" if place(a) < place(b) else "no", "relation", _is_small(a) or _is_small(b)
    )


def _word(scene: Scene, rng: random.Random) -> Question:
    if scene.word and rng.random() < 0.8:
        return Question("what is the word ?", scene.word.text, "word")
    return Question("is there a word ?", "yes" if scene.word else "no", "word")


def _is_small(o: Object) -> bool:
    return o.size == "small"


_ASK = {
    "existence": _existence,
    "color": _color,
    "shape": _shape,
    "size": _size,
    "count": _count,
    "position": _position,
    "relation": _relation,
    "word": _word,
}

_FUNCTION_WORDS = """
a the , and . ? on background some shapes shape picture of other word is there what color size how
many where left above below right yes no describe image briefly in full
detail user assistant generate system
"""
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            *_FUNCTION_WORDS.split(),
            *SHAPES,
            *COLORS,
            *SIZE_OF,
            *CELLS,
            *BACKGROUNDS,
            *NUMBERS,
            *WORDS,
        ]
    )
)
