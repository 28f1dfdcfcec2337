"""DPG-Bench's rules, from answers to scores (arXiv 2403.05135, the official scorer).

    question  1 where the answer is exactly "yes", else 0
    crop      mean over its questions, after this in file order: one with a parent whose score is 0
              by then becomes 0 (hence transitive; a parent later in the file is seen before it is
              zeroed)
    image     mean over its crops
    overall   mean over images, times 100
    category  mean over all questions of the category, before zeroing, times 100

Deviations, each with an option that is as official: categories pool all crops, where officially
only the last one counts. An image that cannot be scored makes the result partial, where officially
an exception drops it in silence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from uae.bench.dpg.questions import DpgItem, DpgQuestion

YES = "yes"


@dataclass(frozen=True)
class CropScore:
    """Each question's 0 or 1, in file order."""

    answered: tuple[int, ...]
    """As it was answered: what categories count."""
    counted: tuple[int, ...]
    """After dependencies: what the image's score is made of."""

    @property
    def score(self) -> float:
        return fmean(self.counted)


@dataclass(frozen=True)
class ImageScore:
    """Of one image file."""

    item: DpgItem
    crops: tuple[CropScore, ...]

    @property
    def score(self) -> float:
        return fmean(crop.score for crop in self.crops)

    def categories(self, level: int, last_crop_only: bool) -> dict[str, tuple[int, int]]:
        """(right, all) by category of level 1 or 2."""
        counts: dict[str, list[int]] = defaultdict(list)
        for crop in self.crops[-1:] if last_crop_only else self.crops:
            for question, right in zip(self.item.questions, crop.answered, strict=True):
                name = question.broad_category if level == 1 else question.category
                counts[name].append(right)
        return {name: (sum(rights), len(rights)) for name, rights in counts.items()}


def score_crop(questions: Sequence[DpgQuestion], answers: Sequence[str]) -> CropScore:
    """Of one answer to each question."""
    answered = {
        question.number: int(answer == YES)
        for question, answer in zip(questions, answers, strict=True)
    }
    counted = dict(answered)
    for question in questions:
        if any(counted[parent] == 0 for parent in question.parents):
            counted[question.number] = 0
    return CropScore(tuple(answered.values()), tuple(counted.values()))


def score_image(item: DpgItem, crops: Sequence[Sequence[str | None]]) -> ImageScore:
    """Of the answers to the item's questions for each crop.

    Raises:
        ValueError: where it cannot be scored: a question has no answer, or a parent is missing.
    """
    if item.problem:
        raise ValueError(item.problem)
    complete = []
    for place, answers in enumerate(crops, 1):
        given = [answer for answer in answers if answer is not None]
        if len(given) < len(item.questions):
            missing = len(item.questions) - len(given)
            raise ValueError(f"{missing} questions about crop {place} have no answer")
        complete.append(score_crop(item.questions, given))
    return ImageScore(item, tuple(complete))


def overall_score(images: Iterable[ImageScore]) -> float | None:
    """Mean over images, times 100; None for none."""
    scores = [image.score for image in images]
    return 100 * fmean(scores) if scores else None


def category_scores(
    images: Iterable[ImageScore], level: int, last_crop_only: bool
) -> dict[str, float]:
    """Times 100, in order of first appearance."""
    pooled: dict[str, tuple[int, int]] = {}
    for image in images:
        for name, (right, total) in image.categories(level, last_crop_only).items():
            old = pooled.get(name, (0, 0))
            pooled[name] = (old[0] + right, old[1] + total)
    return {name: 100 * right / total for name, (right, total) in pooled.items()}


def image_key(name: str) -> str:
    """The item that a file is of: its name up to the first dot."""
    return name.split(".", 1)[0]


def crop_boxes(
    width: int, height: int, num_crops: int, resolution: int | None = None
) -> list[tuple[int, int, int, int]]:
    """The first crops of a grid of two by two: top left, top right, bottom left, bottom right.

    resolution: of a cell's sides, as the official option; by default the whole image for one crop,
    and half its sides for more. Officially a single crop is cut to the resolution, too.
    """
    if resolution is not None:
        w = h = resolution
    elif num_crops == 1:
        w, h = width, height
    else:
        w, h = width // 2, height // 2
    corners = ((0, 0), (w, 0), (0, h), (w, h))
    return [(x, y, x + w, y + h) for x, y in corners[:num_crops]]
