"""The world's questions as a TSV of VLMEvalKit's kind.

The questions are those of ``world/questions.py``, in their order. Options are of the answer's kind:
four colours, shapes, places, numbers or words, three sizes, or yes and no. None lies within the
right one, as "top" does in "top-left"; those that the right one lies within come first. So the
right words alone are read as right, and nothing else is.
"""

from __future__ import annotations

import csv
import io
import random
import string
from pathlib import Path

from uae.images.write import png_address
from uae.utils.files import atomic_write_text
from uae.world.data import pictures
from uae.world.language import NUMBERS, Question
from uae.world.questions import QUESTIONS_PER_SCENE, make_questions
from uae.world.scene import CELLS, COLORS, SHAPES, SIZES, WORDS, first_scenes, random_order

COLUMNS: tuple[str, ...] = (
    *("index", "image", "question", *"ABCD"),
    *("answer", "category", "l2-category", "split"),
)
NUM_OPTIONS = 4
YES_NO = ("yes", "no")
KINDS = (YES_NO, tuple(COLORS), SHAPES, tuple(SIZES), CELLS, NUMBERS)
SPLIT = "test"


def write_world_tsv(path: Path, num_scenes: int, *, seed: int = 0) -> None:
    """Questions about the first scenes of the test split, five each where they differ."""
    scenes = first_scenes(SPLIT, num_scenes)
    images = [png_address(image).partition(",")[2] for image in pictures(scenes)]
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="", delimiter="\t", lineterminator="\n")
    table.writeheader()
    questions = make_questions(scenes, num_scenes * QUESTIONS_PER_SCENE, seed)
    for index, (scene, q) in enumerate(questions):
        rng = random.Random(f"options {seed} {index}")
        table.writerow({**_question(q, rng), "index": str(index), "image": images[scene]})
    atomic_write_text(path, text.getvalue())


def options(q: Question, rng: random.Random) -> list[str]:
    """The right answer among others of its kind, in random order; yes before no."""
    kind = _kind(q)
    if kind == YES_NO:
        return list(YES_NO)
    others = random_order(rng, [each for each in kind if each not in q.answer])
    others.sort(key=lambda each: q.answer not in each)  # stable: what it lies within comes first
    return random_order(rng, [q.answer, *others[: NUM_OPTIONS - 1]])


def _question(q: Question, rng: random.Random) -> dict[str, str]:
    texts = options(q, rng)
    letters = dict(zip(string.ascii_uppercase, texts, strict=False))
    answer = string.ascii_uppercase[texts.index(q.answer)]
    size = "small" if q.small else "other"
    return {
        "question": q.text,
        **letters,
        "answer": answer,
        "category": q.kind,
        "l2-category": size,
        "split": SPLIT,
    }


def _kind(q: Question) -> tuple[str, ...]:
    """What else could be answered."""
    if q.text == "what is the word ?":
        return WORDS
    return next(kind for kind in KINDS if q.answer in kind)
