"""A judge that computes: in the embedded world it is known what a caption states and what a picture
shows, so it is known which of two is better. It calibrates judges that are asked.

Of each candidate, precision and recall of attributes against the source: with R the right ones, S
those that it states and T the true ones,

    F1 = 2 R / (S + T)

Attributes are an object's shape, colour, size and cell, a word, and the background. In a picture
they count in their cell; a mention in a caption belongs to the object it agrees with most. A
candidate with both counts by the mean. Equal candidates are a tie, as the first is named in both
orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from uae.bench.ask.api import Question, Reply
from uae.bench.judge.prompts import captions_in, reply_in_form
from uae.images.read import ImageError, read_image
from uae.utils.messages import one_line
from uae.world.detector import Detection, detect
from uae.world.language import Mention, read_caption
from uae.world.scene import IMAGE_SIZE, Object, Scene, Word


class NotOfTheWorld(Exception):
    """A picture that no scene has."""


class Agreement(NamedTuple):
    """Attributes of one candidate."""

    right: int
    stated: int
    true: int

    @property
    def precision(self) -> float:
        return self.right / self.stated if self.stated else 1.0

    @property
    def recall(self) -> float:
        return self.right / self.true if self.true else 1.0

    @property
    def f1(self) -> float:
        total = self.stated + self.true
        return 2 * self.right / total if total else 1.0


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
        scores[candidate].append(caption_agreement(caption, source.scene).f1)
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


def caption_agreement(caption: str, scene: Scene) -> Agreement:
    """Of what the caption states, each mention against one object."""
    reading = read_caption(caption)
    word = scene.word.text if scene.word else None
    right = stated = 0
    unmatched = list(scene.objects)
    for mention in sorted(reading.mentions, key=lambda m: m.num_stated, reverse=True):
        stated += 1 + mention.num_stated
        best = max(unmatched, key=lambda o: _num_right(mention, o), default=None)
        if best is not None and (num_right := _num_right(mention, best)):
            right += num_right
            unmatched.remove(best)
    for said, is_true in ((reading.word, word), (reading.background, scene.background)):
        stated += said is not None
        right += said is not None and said == is_true
    true = 4 * len(scene.objects) + (word is not None) + 1
    return Agreement(right, stated, true)


def _num_right(mention: Mention, o: Object) -> int:
    said = (mention.shape, mention.color, mention.size, mention.cell)
    return sum(x == y for x, y in zip(said, (o.shape, o.color, o.size, o.cell), strict=True))
