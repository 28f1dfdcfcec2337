"""DPG-Bench of a model, or of pictures made elsewhere, with any VLM or endpoint as the answerer.

A picture is called by its item: what stands before the first dot of its name. One file holds 1 to 4
crops of a grid of two by two, as the official scorer wants it, or each picture is a file of its
own; all crops of an item make its score.

Deviations from the official scorer: the answerer is not mPLUG, so it is asked for one lower-case
word (``suffix``), and ``lenient`` takes "Yes." for yes. Items without a score are named and make
the result partial. ``lose_first_row``, ``drop_failed`` and ``last_crop_only`` bring its three
defects back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from uae.bench.api import Answers
from uae.bench.ask.api import Question
from uae.bench.dpg.questions import DpgItem, read_questions
from uae.bench.dpg.rules import (
    YES,
    ImageScore,
    crop_boxes,
    image_key,
    score_image,
)
from uae.bench.generate import PlacedPrompt
from uae.bench.painted.benchmark import PaintedBench
from uae.bench.painted.pictures import Rows
from uae.bench.painted.result import PaintedResult, Score, ratio_scores
from uae.images.read import open_rgb
from uae.utils.processes import is_main, wait

MAX_NEW_TOKENS = 16
NUM_CROPS = range(1, 5)
Crops = list[list[str | None]]  # answers by crop and question


@dataclass(frozen=True)
class DpgBench(PaintedBench):
    """DPG-Bench: do pictures show all that long prompts ask for? Give --images, or --model."""

    questions: Path = Path("dpg_bench.csv")
    """The official file of questions."""
    crops: int = 1
    """Crops in each file: 1 to 4 cells of a grid of two by two."""
    resolution: int | None = None
    """Sides of a cell in pixels, as officially; by default half of the file's, or the whole file
    for one crop."""
    suffix: str = 'Answer "yes" or "no" in lower case, and nothing else.'
    """Said after each question."""
    lenient: bool = False
    """Take yes for yes whatever its case and punctuation; officially only the exact word counts."""
    lose_first_row: bool = False
    """Official defect: leave out the first row of the file."""
    drop_failed: bool = False
    """Official defect: an item without a score is no reason to call the result partial."""
    last_crop_only: bool = False
    """Official defect: categories count the last crop alone."""
    out: Path = Path("dpg.json")
    """Result file; pictures and answers are kept beside it."""

    @cached_property
    def items(self) -> dict[str, DpgItem]:
        """By id, in file order."""
        return read_questions(self.questions, self.lose_first_row)

    @cached_property
    def rows(self) -> Rows:
        return {name: {"prompt": item.prompt, "item_id": name} for name, item in self.items.items()}

    def name_of_file(self, file: str) -> str:
        return image_key(file)

    def check(self) -> None:
        if self.crops not in NUM_CROPS:
            raise ValueError(f"--crops must be from 1 to 4, got {self.crops}")
        if self.resolution is not None and self.resolution < 1:
            raise ValueError(f"--resolution must be at least 1, got {self.resolution}")
        super().check()

    def score(self, answers: Answers[PlacedPrompt] | None) -> PaintedResult:
        pictures = self.pictures(answers)
        files = {name: self._cut(name, paths) for name, paths in pictures.files.items()}
        wait()  # for the crops, which the main process writes
        replies = self._answers(files)
        images: dict[str, ImageScore] = {}
        unscored = dict(pictures.problems)
        for name, crops in replies.items():
            try:
                images[name] = score_image(self.items[name], crops)
            except ValueError as error:
                unscored[name] = str(error)
        self.check_some(images, unscored)
        return PaintedResult(
            title="DPG-Bench",
            scores=self._scores(images),
            images={name: _described(score) for name, score in images.items()},
            unscored=unscored,
            remarks=pictures.remarks,
            rewriting=pictures.rewriting,
            notes=self._notes(replies, unscored),
            settings={**self.recorded(answers), **self._settings()},
            answerer=self.asker.settings,
            partial=bool(unscored) and not self.drop_failed,
        )

    def _cut(self, name: str, paths: Sequence[Path]) -> list[Path]:
        """The crops of an item, each in a file that can be asked about."""
        if self.crops == 1 and self.resolution is None:
            return list(paths)
        place = list(self.items).index(name)
        folder = self._beside("crops")
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for path in paths:
            image = open_rgb(path)
            for box in crop_boxes(*image.size, self.crops, self.resolution):
                files.append(folder / f"{place:05}_{len(files)}.png")
                if is_main():
                    image.crop(box).save(files[-1])
        return files

    def _answers(self, files: Mapping[str, Sequence[Path]]) -> dict[str, Crops]:
        """To all questions of each item about each crop; items that cannot be scored are not
        asked about."""
        asked = [
            (name, crop, Question(f"{question.text} {self.suffix}".strip(), (file,)))
            for name, crops in files.items()
            for crop, file in enumerate(crops)
            for question in self.items[name].questions
            if not self.items[name].problem
        ]
        texts: dict[str, Crops] = {name: [[] for _ in crops] for name, crops in files.items()}
        replies = self.ask([question for *_, question in asked], MAX_NEW_TOKENS)
        for (name, crop, _), reply in zip(asked, replies, strict=True):
            texts[name][crop].append(self._read(reply.text))
        return texts

    def _read(self, text: str | None) -> str | None:
        return YES if self.lenient and text is not None and _means_yes(text) else text

    def _scores(self, images: Mapping[str, ImageScore]) -> dict[str, dict[str, Score]]:
        sums = {
            "overall": [{"overall": (image.score, 1.0)} for image in images.values()],
            **{
                f"category, level {level}": [
                    image.categories(level, self.last_crop_only) for image in images.values()
                ]
                for level in (1, 2)
            },
        }
        return {
            section: ratio_scores(each, self.num_bootstrap, self.seed)
            for section, each in sums.items()
        }

    def _notes(self, replies: Mapping[str, Crops], unscored: Mapping[str, str]) -> list[str]:
        texts = [text for crops in replies.values() for crop in crops for text in crop if text]
        nearly = sum(text != YES and _means_yes(text) for text in texts)
        said = [
            (self.lose_first_row, "as officially, the first row of questions is lost"),
            (self.last_crop_only, "as officially, categories count the last crop alone"),
            (
                self.drop_failed and bool(unscored),
                f"as officially, {len(unscored)} items without a score are dropped",
            ),
            (
                nearly > 0,
                f'{nearly} of {len(texts)} answers are "yes" but for case or punctuation and '
                "count as no, as officially; --lenient counts them as yes",
            ),
        ]
        return [line for applies, line in said if applies]

    def _settings(self) -> dict[str, object]:
        names = ("crops", "resolution", "suffix", "lenient")
        defects = ("lose_first_row", "drop_failed", "last_crop_only")
        own = {name: getattr(self, name) for name in (*names, *defects)}
        return {"questions": str(self.questions), **own, "max_new_tokens": MAX_NEW_TOKENS}


def _means_yes(text: str) -> bool:
    return text.strip().strip(".!\"'*").lower() == YES


def _described(image: ImageScore) -> dict[str, object]:
    return {
        "score": image.score,
        "crops": [crop.score for crop in image.crops],
        "answered": [list(crop.answered) for crop in image.crops],
    }
