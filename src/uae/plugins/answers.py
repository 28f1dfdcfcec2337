"""Questions as evaluation packages ask them, answered by a model of ours.

A question has one image. What else is asked (none, several, video, audio) is named on stderr and
gets ``UNANSWERED`` for an answer. VLMEvalKit reads that as a refusal, so it is wrong and no judge
guesses. The rest goes on.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image
from torch import Tensor

from uae.images.read import read_image, read_image_bytes
from uae.models.base import Captioner
from uae.utils.messages import one_line

UNANSWERED = "Cannot determine the answer"
MAX_NEW_TOKENS = 512  # where a task says nothing
PNG_MODES = ("1", "L", "LA", "P", "I", "I;16", "RGB", "RGBA")


@dataclass(frozen=True)
class Asked:
    """A question as it comes."""

    name: str
    """For messages."""
    parts: Sequence[tuple[str, Any]]
    """Kind ("text", "image" or another) and value: a text; a file or a Pillow image."""


@dataclass(frozen=True)
class Question:
    """One that can be put to a model."""

    name: str
    image: Tensor
    text: str


def answer_all(model: Captioner, asked: Sequence[Asked], max_new_tokens: int) -> list[str]:
    """Greedy answers, ``UNANSWERED`` where there can be none."""
    questions = [_question_or_none(each) for each in asked]
    answers = iter(_answers(model, [q for q in questions if q], max_new_tokens))
    return [UNANSWERED if q is None else next(answers) for q in questions]


def question_of(asked: Asked) -> Question:
    """Its image, and its texts a line each.

    Raises:
        ValueError: where it is not about one image, or that cannot be read.
    """
    others = Counter(kind for kind, _ in asked.parts if kind != "text")
    if others != {"image": 1}:
        got = ", ".join(f"{number} × {kind}" for kind, number in others.items()) or "none"
        raise ValueError(
            f"expected a question about one image, got {got}; let another model answer it"
        )
    (image,) = (value for kind, value in asked.parts if kind == "image")
    texts = [value for kind, value in asked.parts if kind == "text"]
    return Question(asked.name, read_any(image), "\n".join(texts))


def read_any(image: Any) -> Tensor:
    """A file's, or a Pillow image's pixels, by the rules of ``images/read.py``."""
    if not isinstance(image, Image.Image):
        return read_image(image)
    file = BytesIO()
    known = image if image.mode in PNG_MODES else image.convert("RGB")
    known.save(file, "PNG", compress_level=1)
    return read_image_bytes(file.getvalue(), "its image")


def _question_or_none(asked: Asked) -> Question | None:
    try:
        return question_of(asked)
    except ValueError as error:
        _say(asked.name, error)
        return None


def _answers(model: Captioner, questions: Sequence[Question], max_new_tokens: int) -> list[str]:
    """Of all together; where the model cannot take one, of each alone."""
    if not questions:
        return []
    images, texts = [q.image for q in questions], [q.text for q in questions]
    try:
        return model.answer(images, texts, max_new_tokens=max_new_tokens)
    except ValueError as error:
        if len(questions) == 1:
            _say(questions[0].name, error)
            return [UNANSWERED]
    return [answer for q in questions for answer in _answers(model, [q], max_new_tokens)]


def _say(name: str, error: ValueError) -> None:
    print(f"left unanswered: {name}: {one_line(error)}", file=sys.stderr)
