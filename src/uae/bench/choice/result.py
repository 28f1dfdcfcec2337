"""The result of multiple choice: scores with intervals, how answers were read, what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from uae.bench.choice.circular import Index, Method
from uae.bench.choice.report import ALL, SplitReport, TaskMean
from uae.bench.result import Share, first_of, shares_to_json, versions

DEVIATIONS = (
    "rows whose answer is no option are left out (officially: wrong)",
    "what a judge cannot read is wrong (officially: an option drawn at random)",
    "MMMU's images come first (officially: in the places of <image n>)",
)


@dataclass(frozen=True)
class GroupScore:
    """Of categories that the user named."""

    pooled: Share
    """Of all their rows."""
    mean: TaskMean
    """Each category counting the same."""

    def to_json(self) -> dict[str, Any]:
        return {"pooled": self.pooled.to_json(), "mean": self.mean.to_json()}


@dataclass(frozen=True)
class ChoiceResult:
    """What was measured."""

    dataset: str
    evaluation: Method
    """Circular: a question is right only if all rotations of its options are."""
    overall: Share
    """Of the questions that are reported."""
    splits: dict[str, SplitReport]
    groups: dict[str, GroupScore]
    ways: dict[str, Share]
    """How answers were read, of all rows."""
    hits: dict[Index, bool]
    """By index of the question."""
    left_out: list[str]
    """A line for each row that is not scored, with the reason."""
    notes: list[str]
    """What else there is to know of the numbers."""
    partial: bool
    """Rows of the table are not scored."""
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "benchmark": "multiple choice",
            "dataset": self.dataset,
            "evaluation": self.evaluation,
            "partial": self.partial,
            "overall": self.overall.to_json(),
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "groups": {name: score.to_json() for name, score in self.groups.items()},
            "ways_of_reading": shares_to_json(self.ways),
            "hits": {index: int(is_right) for index, is_right in self.hits.items()},
            "left_out": self.left_out,
            "notes": self.notes,
            "deviations": list(DEVIATIONS),
            "settings": self.settings,
            "versions": versions(),
        }


def choice_table(result: ChoiceResult) -> Group:
    """To print with ``rich``."""
    table = Table(title=f"{result.dataset}, {result.evaluation} evaluation")
    for name in ("", "%", "95 % from", "to", "questions"):
        table.add_column(name, justify="right" if name else "left")
    _add(table, "overall", result.overall)
    for name, group in result.groups.items():
        _add(table, f"group {name}, rows", group.pooled)
        _add(table, f"group {name}, mean of {len(group.mean.tasks)}", group.mean)
    for split, scores in result.splits.items():
        if len(result.splits) > 1 and split != ALL:
            _add(table, f"split {split}", scores.overall)
    _add_categories(table, result.splits)
    return Group(table, _ways_table(result.ways), *map(Text, _remarks(result)))


def _add_categories(table: Table, splits: Mapping[str, SplitReport]) -> None:
    """Of all rows, or of the only split."""
    scores = splits[ALL] if ALL in splits else next(iter(splits.values()))
    for title, part in (("l2", scores.l2_categories), ("category", scores.categories)):
        for i, (name, score) in enumerate(part.items()):
            if i == 0:
                table.add_section()
            _add(table, f"{title} {name}", score)


def _add(table: Table, name: str, score: Share | TaskMean) -> None:
    low, high = score.interval or (None, None)
    numbers = [_number(value) for value in (score.percent, low, high)]
    tasks = score.tasks.values() if isinstance(score, TaskMean) else [score]
    table.add_row(Text(name), *numbers, str(sum(task.total for task in tasks)))


def _ways_table(ways: Mapping[str, Share]) -> Table:
    table = Table(title="how answers were read")
    for name in ("", "%", "answers"):
        table.add_column(name, justify="right" if name else "left")
    for name, share in ways.items():
        if share.right:
            table.add_row(name, _number(share.percent), str(share.right))
    return table


def _remarks(result: ChoiceResult) -> list[str]:
    lines = [f"note: {note}" for note in result.notes]
    left_out = [f"left out: {line}" for line in result.left_out]
    return lines + first_of(left_out, "left out: {} more, named in the result file")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
