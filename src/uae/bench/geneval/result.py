"""The result of GenEval: numbers, what is missing, and how it was judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from uae.bench.geneval.summary import Summary
from uae.bench.result import Share, first_of, shares_to_json, versions
from uae.bench.rewrite.record import Rewriting
from uae.utils.messages import printable


@dataclass(frozen=True)
class GenEvalResult:
    """What was measured."""

    summary: Summary
    unscored: dict[str, str]
    """Images that have no verdict, with the reason; no score counts them."""
    missing: list[str]
    """What should be there and is not: a line each."""
    remarks: list[str]
    """What else there is to know of the images: a line each."""
    settings: dict[str, Any]
    """What the numbers depend on."""
    deviations: Sequence[str] = field(default_factory=tuple)
    """From the official scorer."""
    model: dict[str, Any] | None = None
    """Who painted and how, if that is known."""
    rewriting: Rewriting | None = None
    """How the prompts were rewritten before they were painted, if they were."""

    @property
    def partial(self) -> bool:
        """Images are missing, or cannot be read."""
        return bool(self.unscored or self.missing)

    def to_json(self) -> dict[str, Any]:
        summary = self.summary
        interval = summary.overall_interval
        return {
            "benchmark": "geneval",
            "overall": summary.overall,
            "overall_interval": interval and asdict(interval),
            "tags": shares_to_json(summary.tags),
            "images": summary.images.to_json(),
            "prompts_with_any_right": summary.prompts.to_json(),
            "partial": self.partial,
            "unscored": self.unscored,
            "missing": self.missing,
            "remarks": self.remarks,
            "deviations": list(self.deviations),
            "settings": self.settings,
            "versions": versions(),
            **({"model": self.model} if self.model else {}),
            **({"rewriting": self.rewriting.to_json()} if self.rewriting else {}),
        }


def geneval_table(result: GenEvalResult) -> Group:
    """Scores by tag, to print with ``rich``, and the notes under them."""
    summary = result.summary
    table = Table(title="GenEval (% of images that show what the prompt says)")
    table.add_column("tag")
    for title in ("score", "95 % from", "to", "right", "of"):
        table.add_column(title, justify="right")
    for tag, share in summary.tags.items():
        table.add_row(tag, *_cells(share))
    table.add_section()
    interval = summary.overall_interval
    ends = (_number(interval and interval.low), _number(interval and interval.high))
    table.add_row("overall (mean of tags)", _number(summary.overall), *ends, "", "", style="bold")
    table.add_row("images", *_cells(summary.images))
    table.add_row("prompts with any right", *_cells(summary.prompts))
    return Group(table, *(Text(note) for note in _notes(result)))


def _cells(share: Share) -> list[str]:
    low, high = share.interval or (None, None)
    numbers = (share.percent, low, high)
    return [*(_number(value) for value in numbers), str(share.right), str(share.total)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _notes(result: GenEvalResult) -> list[str]:
    """What a reader must know beside the numbers."""
    unscored = [f"{name}: {reason}" for name, reason in result.unscored.items()]
    return [
        *([] if result.rewriting is None else result.rewriting.lines()),
        *_listed("not scored", unscored),
        *_listed("missing", result.missing),
        *_listed("note", result.remarks),
    ]


def _listed(what: str, lines: Sequence[str]) -> list[str]:
    shown = [f"{what}: {printable(line)}" for line in lines]
    return first_of(shown, f"… and {{}} more ({what})")
