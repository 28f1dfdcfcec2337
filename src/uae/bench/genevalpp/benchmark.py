"""GenEval++ of a model, or of pictures made elsewhere, judged by any VLM.

In ``--images`` a picture is called by its prompt's number from 1: 1.jpg, 2.jpg … Officially other
formats are not read; ``any_format`` takes them.

Deviations: the instruction is worded anew (``rules.py``), and its photograph clause can be left
out. A judge that is asked again answers at a temperature above 0, as the same words would come
again. Several pictures of a prompt count each. Missing pictures count as wrong, as officially, and
make the result partial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from uae.bench.api import Answers
from uae.bench.ask.api import Question
from uae.bench.bootstrap import Sums, interval_of, resampled
from uae.bench.generate import PlacedPrompt
from uae.bench.genevalpp.rules import (
    MAX_NEW_TOKENS,
    NUM_TRIES,
    Verdict,
    by_tag,
    judge_text,
    judge_verdict,
    overall_score,
    tag_accuracy,
)
from uae.bench.painted.benchmark import PaintedBench
from uae.bench.painted.pictures import Rows
from uae.bench.painted.result import PaintedResult, Score
from uae.bench.result import Share
from uae.data.prompts import read_prompts

OFFICIAL_FORMAT = ".jpg"
Asked = dict[tuple[str, Path], list[str | None]]  # replies so far, by prompt and picture


@dataclass(frozen=True)
class GenEvalPlusPlus(PaintedBench):
    """GenEval++: does a VLM find all on the prompt's list? Give --images, or --model."""

    prompts: Path = Path("geneval++.jsonl")
    """The official file: `tag`, `include`, `exclude`, `prompt` in each line."""
    must_be_photograph: bool = True
    """Whether the picture must look like a natural photograph, as officially; rendered ones never
    do."""
    any_format: bool = False
    """Take numbered pictures of other formats than .jpg."""
    out: Path = Path("genevalpp.json")
    """Result file; pictures and answers are kept beside it."""

    @cached_property
    def rows(self) -> Rows:
        listed = enumerate(read_prompts(self.prompts), 1)
        return {
            str(number): check_row(row, f"{self.prompts}, prompt {number}")
            for number, row in listed
        }

    def name_of_file(self, file: str) -> str:
        name = Path(file)
        if name.suffix != OFFICIAL_FORMAT and not self.any_format:
            raise ValueError(f"officially only {OFFICIAL_FORMAT} is read; --any-format takes it")
        return name.stem

    def score(self, answers: Answers[PlacedPrompt] | None) -> PaintedResult:
        pictures = self.pictures(answers)
        verdicts = {
            name: [Verdict.missing(row["tag"])] for name, row in self.rows.items()
        } | self._judged(
            {(name, file): [] for name, files in pictures.files.items() for file in files}
        )
        unreadable = [v for each in verdicts.values() for v in each if v.state == "unreadable"]
        return PaintedResult(
            title="GenEval++",
            scores=self._scores(verdicts),
            images={name: [vars(each) for each in rows] for name, rows in verdicts.items()},
            unscored={name: f"{why}; counts as wrong" for name, why in pictures.problems.items()},
            remarks=pictures.remarks,
            rewriting=pictures.rewriting,
            notes=self._notes(len(unreadable)),
            settings={
                **self.recorded(answers),
                "prompts": str(self.prompts),
                "must_be_photograph": self.must_be_photograph,
                "any_format": self.any_format,
                "max_new_tokens": MAX_NEW_TOKENS,
            },
            answerer=self.asker.settings,
            partial=bool(pictures.problems) or any(each.reply is None for each in unreadable),
        )

    def _judged(self, asked: Asked) -> dict[str, list[Verdict]]:
        """All pictures, each asked about until its verdict can be read."""
        for attempt in range(NUM_TRIES):
            open_ = [key for key, texts in asked.items() if self._verdict(key[0], texts) is None]
            questions = [
                Question(self._text(name), (file,), attempt=attempt) for name, file in open_
            ]
            replies = self.ask(questions, MAX_NEW_TOKENS)
            for key, reply in zip(open_, replies, strict=True):
                asked[key].append(reply.text)
        verdicts: dict[str, list[Verdict]] = {}
        for (name, _), texts in asked.items():
            verdict = self._verdict(name, texts)
            assert verdict is not None, "after as many tries there is one"
            verdicts.setdefault(name, []).append(verdict)
        return verdicts

    def _verdict(self, name: str, texts: list[str | None]) -> Verdict | None:
        return judge_verdict(self.rows[name]["tag"], texts)

    def _text(self, name: str) -> str:
        return judge_text(self.rows[name], self.must_be_photograph)

    def _scores(self, verdicts: Mapping[str, list[Verdict]]) -> dict[str, dict[str, Score]]:
        listed = [verdict for each in verdicts.values() for verdict in each]
        tags = by_tag(listed)
        sums: list[Sums] = [
            {each[0].tag: (sum(v.is_right for v in each), len(each))} for each in verdicts.values()
        ]
        draws = resampled(sums, self.num_bootstrap, self.seed)
        means = np.mean(list(draws.values()), axis=0)
        overall = Score(100 * overall_score(tags), interval_of(means), len(listed))
        everything = Score.of_share(Share.of(verdict.is_right for verdict in listed))
        shares = {tag: Score.of_share(Share.of(rights)) for tag, rights in tags.items()}
        rounded = {
            tag: Score(100 * tag_accuracy(tags[tag]), score.interval, score.count)
            for tag, score in shares.items()
        }
        return {"overall": {"mean over tags": overall, "all pictures": everything}, "tag": rounded}

    def _notes(self, num_unreadable: int) -> list[str]:
        said = [
            (
                not self.must_be_photograph,
                "without the photograph clause: not comparable with official numbers",
            ),
            (
                num_unreadable > 0,
                f"{num_unreadable} pictures got no verdict that can be read in {NUM_TRIES} tries "
                "and count as wrong, as officially",
            ),
        ]
        return [line for applies, line in said if applies]


def check_row(row: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """The row, if it has a tag and a list of objects.

    Raises:
        ValueError: if it has not.
    """
    clauses = [*_list(row, "include"), *_list(row, "exclude")]
    if not isinstance(row.get("tag"), str) or not _list(row, "include"):
        raise ValueError(f"{place}: expected a tag and a list of objects to include")
    for clause in clauses:
        if not (
            isinstance(clause, dict)
            and isinstance(clause.get("class"), str)
            and isinstance(clause.get("count"), int)
        ):
            raise ValueError(f"{place}: expected a class and a count, got {clause!r:.60}")
    return row


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    value = row.get(name, [])
    return value if isinstance(value, list) else []
