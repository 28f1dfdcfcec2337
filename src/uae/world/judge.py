"""A judge that computes: in the embedded world it is known what a caption states and what a picture
shows, so it is known which of two is better. It calibrates judges that are asked.

A candidate's score is the F1 of attributes against the source (``agreement.py``): of a caption
those that it states, of a picture those that the detector reads in their cell. A candidate with
both counts by the mean. Equal candidates are a tie, as the first is named in both orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from uae.bench.ask.api import Question, Reply
from uae.bench.judge.prompts import captions_in, reply_in_form
from uae.images.read import ImageError, read_image
from uae.utils.messages import one_line
from uae.world.agreement import Agreement, agreement
from uae.world.detector import Detection, detect
from uae.world.language import exhaustive_caption
from uae.world.scene import IMAGE_SIZE, Object, Scene, Word


class NotOfTheWorld(Exception):
    """A picture that no scene has."""


class ExactJudge:
    """Takes a judge's place: it reads the same question and replies in the same form."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"answerer": "exact", "score": "F1 of attributes"}

    def ask(
        self, questions: Sequence[Question], max_new_tokens: int
    ) -> Iterator[tuple[int, Reply]]:
        for place, question in enumerate(questions):
            try:
                reply = Reply(reply_in_form(question, scores_of(question)))
            except (NotOfTheWorld, ImageError, OSError) as error:
                reply = Reply(None, one_line(error))
            yield place, reply


def scores_of(question: Question) -> dict[str, float]:
    """Of A and B."""
    source = _seen(question.images[0])
    if source.unsure_cells:
        raise NotOfTheWorld(f"{question.images[0]}: expected a picture of the world, this is none")
    scores: dict[str, list[float]] = {"A": [], "B": []}
    for candidate, caption in captions_in(question.text).items():
        scores[candidate].append(agreement(exhaustive_caption(source.scene), caption).f1)
    for candidate, file in zip("AB", question.images[1:], strict=False):
        scores[candidate].append(picture_agreement(_seen(file).scene, source.scene).f1)
    return {candidate: sum(each) / len(each) for candidate, each in scores.items()}


def _seen(file: Path) -> Detection:
    image = read_image(file)
    if tuple(image.shape) != (3, IMAGE_SIZE, IMAGE_SIZE):
        height, width = image.shape[1:]
        raise NotOfTheWorld(
            f"{file}: expected the world's picture of {IMAGE_SIZE}x{IMAGE_SIZE}, got "
            f"{width}x{height}"
        )
    return detect(image[None])[0]


def picture_agreement(shown: Scene, scene: Scene) -> Agreement:
    """Of what the detector is sure of."""
    stated, true = _attributes(shown), _attributes(scene)
    return Agreement(len(stated & true), len(stated), len(true))


def _attributes(scene: Scene) -> set[tuple[Any, ...]]:
    found: set[tuple[Any, ...]] = {("background", scene.background)}
    for cell, content in enumerate(scene.contents):
        if isinstance(content, Object):
            kinds = ("shape", "color", "size")
            found |= {(cell, "object"), *((cell, kind, getattr(content, kind)) for kind in kinds)}
        elif isinstance(content, Word):
            found.add((cell, "word", content.text))
    return found
