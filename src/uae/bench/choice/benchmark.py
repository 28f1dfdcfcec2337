"""Multiple choice of a model, of any answerer, or of predictions made elsewhere.

Deviations from VLMEvalKit are stated where the rules are: ``reading.py`` for answers, ``table.py``
for rows, ``circular.py`` and ``report.py`` for scores, ``judge.py``, ``task.py`` for the prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from uae.bench.api import Answers
from uae.bench.ask.api import Asker
from uae.bench.ask.build import AskerOptions
from uae.bench.choice.answerer import AskedQuestions
from uae.bench.choice.circular import (
    Evaluation,
    Method,
    Outcome,
    evaluate,
    is_circular_by_name,
)
from uae.bench.choice.judge import Unread, judge_answers
from uae.bench.choice.outcomes import read_outcomes
from uae.bench.choice.pictures import QuestionImages
from uae.bench.choice.predictions import Predictions, read_predictions
from uae.bench.choice.reading import WAYS, Reading
from uae.bench.choice.report import group_score, is_mmt, missing_mmt, report
from uae.bench.choice.result import ChoiceResult, GroupScore, choice_table
from uae.bench.choice.table import ChoiceTable, Index
from uae.bench.choice.task import AnswerQuestions, Prompt
from uae.bench.result import Share
from uae.utils.importing import import_named
from uae.utils.outputs import check_out_file
from uae.utils.processes import is_main, wait
from uae.utils.suggest import did_you_mean

WORLD = "world"
WRITE_WORLD = "uae.world.choice:write_world_tsv"  # no benchmark imports the world
EMPTY = "nan"  # what an empty prediction reads officially


@dataclass(frozen=True)
class ChoiceBench:
    """Multiple choice on a TSV of VLMEvalKit's kind: MMBench, MMMU, MMT-Bench and the like."""

    data: str = "world"
    """The TSV; or `world`: questions about scenes of the embedded world."""
    model: str = "tiny"
    """Who answers: `tiny`, `tiny-ar`, `tiny-early`, a folder that uae wrote, Janus-Pro, or
    ENCODER+DECODER by hub id or folder."""
    predictions: Path | None = None
    """Answers made elsewhere, in place of --model: .tsv, .csv or .jsonl with index and
    prediction."""
    answerer: AskerOptions = field(default_factory=AskerOptions)
    """Any other model, in place of --model: behind an endpoint, or one that transformers loads; it
    may see several images."""
    judge: AskerOptions = field(default_factory=AskerOptions)
    """A language model that reads answers which the rules cannot; without one these are wrong."""
    dataset: str | None = None
    """The name that says how the data are evaluated, as officially: circular (mmbench, ccbench,
    circular, mmcr), with open questions (MMMU), by sub-tasks (MMT); by default the file's."""
    evaluation: Method | None = None
    """Circular counts a question as right only if all rotations of its options are; by default as
    the name says."""
    prompt: Prompt | None = None
    """What is asked: VLMEvalKit's prompt with the options, or the question alone; by default the
    former, but for the world, whose models know no letters."""
    images: Path | None = None
    """Folder where the paths of column image_path begin; by default the TSV's."""
    group: tuple[str, ...] = ()
    """NAME=CATEGORY,CATEGORY: a score of these categories together, of either level."""
    max_new_tokens: int = 64
    """Of an answer, at most."""
    batch_size: int = 16
    """Questions at a time."""
    num_scenes: int = 100
    """For the world: scenes asked about, five questions each."""
    official_defects: bool = False
    """Read tables as the official code does, which passes them through a spreadsheet: "None" and
    "N/A" are empty cells, numbers may change, an empty prediction says "nan"; and an open question
    whose answer is one capital letter cannot be answered right."""
    out: Path = Path("choice.json")
    """Result file; answers are kept beside it."""

    def check(self) -> None:
        check_out_file(self.out)
        for name in ("max_new_tokens", "batch_size", "num_scenes"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be at least 1, got {getattr(self, name)}")
        if self.predictions is not None and self.answerer.model is not None:
            raise ValueError("expected either --predictions FILE or --answerer, got both")
        if self.predictions is None and not self.table_of_questions.has_images:
            raise ValueError(
                f"{self.data}: expected a column image or image_path; without one only "
                "--predictions can be scored"
            )
        self._check_indexes()
        _ = self._groups

    def task(self) -> AnswerQuestions | None:
        if self.predictions is not None or self.answerer.model is not None:
            return None
        return AnswerQuestions(
            images=self._images,
            dataset=self.name,
            model=self.model,
            out=self._beside("answers"),
            prompt=self._prompt,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )

    def score(self, answers: Answers[Index] | None) -> ChoiceResult:
        predictions = self._predictions(answers)
        known = set(self.table_of_questions.indexes)
        outcomes = self._outcomes(predictions.texts)
        if not outcomes:
            raise ValueError(
                f"expected an answer to at least one of {len(known)} questions, there is none: "
                f"{'; '.join(predictions.problems[:3]) or 'no index is known'}"
            )
        evaluation = evaluate(outcomes, self.method)
        ways = Counter(outcome.way for outcome in outcomes)
        left_out = [*self.table_of_questions.problems, *predictions.problems]
        unanswered = len(known) - len(outcomes)
        return ChoiceResult(
            dataset=self.name,
            evaluation=self.method,
            overall=Share.of(outcome.is_right for outcome in evaluation.outcomes),
            splits=report(evaluation.outcomes, as_mmt=is_mmt(self.name)),
            groups={
                name: GroupScore(*group_score(evaluation.outcomes, members))
                for name, members in self._groups.items()
            },
            ways={way: Share(ways[way], len(outcomes)) for way in WAYS},
            hits={outcome.index: outcome.is_right for outcome in evaluation.outcomes},
            left_out=left_out,
            notes=self._notes(evaluation, unanswered, len(predictions.texts.keys() - known)),
            partial=bool(left_out or unanswered),
            settings=self._settings(answers),
        )

    def table(self, result: ChoiceResult) -> RenderableType:
        return choice_table(result)

    # --- the questions ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """That says how the data are evaluated."""
        return self.dataset or (WORLD if self.data == WORLD else Path(self.data).stem)

    @property
    def method(self) -> Method:
        """How rows become questions."""
        by_name: Method = "circular" if is_circular_by_name(self.name) else "plain"
        return self.evaluation or by_name

    @cached_property
    def table_of_questions(self) -> ChoiceTable:
        """Read through once; the world's is written first."""
        path = Path(self.data)
        if self.data == WORLD:
            path = self._beside("questions.tsv")
            if is_main():
                import_named(WRITE_WORLD, "questions")(path, self.num_scenes)
            wait()
        return ChoiceTable(
            path,
            has_open_questions="MMMU" in self.name,
            official_defects=self.official_defects,
        )

    @property
    def _images(self) -> QuestionImages:
        return QuestionImages(self.table_of_questions, self.images)

    @property
    def _prompt(self) -> Prompt:
        return self.prompt or ("question" if self.data == WORLD else "options")

    @cached_property
    def _groups(self) -> dict[str, list[str]]:
        """The categories of each ``--group``."""
        if not self.group:
            return {}
        rows = self.table_of_questions.rows()
        known = {name for row in rows for name in (row.category, row.l2_category) if name}
        groups = {}
        for text in self.group:
            name, _, listed = text.partition("=")
            members = [member.strip() for member in listed.split(",") if member.strip()]
            if not name.strip() or not members:
                raise ValueError(f"--group {text}: expected NAME=CATEGORY,CATEGORY")
            for member in members:
                if member not in known:
                    raise ValueError(
                        f"--group {text}: {self.data} has no category "
                        f"{member!r}{did_you_mean(member, sorted(known))}"
                    )
            groups[name.strip()] = members
        return groups

    def _check_indexes(self) -> None:
        indexes = self.table_of_questions.indexes  # an error, if there are none
        if self.method == "plain" or self.table_of_questions.has_groups:
            return
        if odd := [index for index in indexes if not isinstance(index, int)]:
            raise ValueError(
                f"{self.data}: circular evaluation expects whole numbers as indexes, or a column "
                f"g_index, got {odd[0]!r}; give --evaluation plain"
            )

    @cached_property
    def _asker(self) -> Asker:
        """Who answers in the place of ``--model``, loaded once."""
        return self.answerer.build()

    @cached_property
    def _judge(self) -> Asker:
        """Who reads what the rules cannot, loaded once."""
        return self.judge.build()

    # --- the answers -----------------------------------------------------------------------------

    def _predictions(self, answers: Answers[Index] | None) -> Predictions:
        task = self.task()
        if task is not None and answers is not None:
            return Predictions(task.texts(answers), list(answers.left_out.values()))
        if self.predictions is not None:
            return read_predictions(self.predictions)
        folder = self._beside("asked")
        asked = AskedQuestions(self._images, folder, self._prompt, self.max_new_tokens)
        return asked.predictions(self._asker)

    def _outcomes(self, texts: Mapping[Index, str]) -> list[Outcome]:
        """Of all questions that have an answer."""
        if self.official_defects:
            texts = {index: text or EMPTY for index, text in texts.items()}
        judge = None if self.judge.model is None else self._judged
        return read_outcomes(self.table_of_questions.rows(), texts, judge)

    def _judged(self, unread: Sequence[Unread]) -> list[Reading]:
        return judge_answers(self._judge, unread, self._beside("judged.jsonl"))

    # --- what is said ----------------------------------------------------------------------------

    def _notes(self, evaluation: Evaluation, unanswered: int, unknown: int) -> list[str]:
        missing = missing_mmt(evaluation.outcomes) if is_mmt(self.name) else []
        said = [
            (unanswered, f"{unanswered} questions have no answer and are not counted"),
            (unknown, f"{unknown} predictions belong to no question"),
            (
                evaluation.incomplete,
                f"{len(evaluation.incomplete)} questions have fewer answers than options: some "
                "rotations were not tried, which goes unnoticed officially",
            ),
            (
                evaluation.baseless,
                f"{len(evaluation.baseless)} questions are not reported, as officially: their "
                "first row has no answer",
            ),
            (missing, f"level-2 categories of MMT-Bench without rows: {', '.join(missing)}"),
            (self.official_defects, "cells are read as officially, through a spreadsheet"),
        ]
        return [line for applies, line in said if applies]

    def _settings(self, answers: Answers[Index] | None) -> dict[str, Any]:
        judge = self._judge.settings if self.judge.model is not None else None
        common = {
            "data": self.data,
            "rows": len(self.table_of_questions.indexes),
            "official_defects": self.official_defects,
            "judge": judge,
        }
        if answers is not None:
            return {**common, **answers.settings}
        if self.predictions is not None:
            return {**common, "predictions": str(self.predictions)}
        asked = {"prompt": self._prompt, "max_new_tokens": self.max_new_tokens}
        return {**common, **asked, "answerer": self._asker.settings}

    def _beside(self, what: str) -> Path:
        return self.out.with_name(f"{self.out.stem}_{what}")
