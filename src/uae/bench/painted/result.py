"""The result of a benchmark of painted prompts: scores with intervals, and what is not scored.

Every score is a ratio of sums over pictures. Its interval is a percentile bootstrap (95 %): prompts
are drawn with replacement, with all their pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from uae.bench.bootstrap import Sums, interval_of, resampled
from uae.bench.result import Interval, Share, first_of, versions
from uae.bench.rewrite.record import Rewriting
from uae.utils.messages import printable


@dataclass(frozen=True)
class Score:
    """A mean, times 100."""

    value: float | None
    """None where there was nothing to count."""
    interval: Interval | None
    """Of 95 %."""
    count: int
    """What it is a mean of."""

    @classmethod
    def of_share(cls, share: Share) -> Score:
        """With Wilson's interval."""
        interval = None if share.interval is None else Interval(*share.interval)
        return cls(share.percent, interval, share.total)


@dataclass(frozen=True)
class PaintedResult:
    """What was measured of pictures of prompts."""

    title: str
    """Of the benchmark."""
    scores: dict[str, dict[str, Score]]
    """By section; the first one is the headline."""
    images: dict[str, Any]
    """By prompt: how each was scored."""
    unscored: dict[str, str]
    """Prompts that could not be scored, with the reason."""
    remarks: list[str]
    """Files that belong to no prompt, and the like."""
    notes: list[str]
    """How the numbers differ from the official ones, and defects that were asked for."""
    settings: dict[str, Any]
    """What else the numbers depend on."""
    answerer: dict[str, Any]
    """Who answered, and how; nothing where nobody was asked."""
    partial: bool
    """Some of what was asked for is not scored."""
    rewriting: Rewriting | None = None
    """How the prompts were rewritten before they were painted, if they were."""

    def to_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.title,
            "partial": self.partial,
            "scores": {
                section: {name: asdict(score) for name, score in scores.items()}
                for section, scores in self.scores.items()
            },
            "images": self.images,
            "unscored": self.unscored,
            "remarks": self.remarks,
            "notes": self.notes,
            "settings": self.settings,
            "answerer": self.answerer,
            "versions": versions(),
            **({"rewriting": self.rewriting.to_json()} if self.rewriting else {}),
        }


# --- intervals -----------------------------------------------------------------------------------


def ratio_scores(prompts: Sequence[Sums], num_bootstrap: int, seed: int) -> dict[str, Score]:
    """Of all prompts, each with its interval, in order of first appearance."""
    scores = {}
    for name, values in resampled(prompts, num_bootstrap, seed).items():
        total = sum(sums[name][0] for sums in prompts if name in sums)
        count = sum(sums[name][1] for sums in prompts if name in sums)
        scores[name] = Score(100 * total / count, interval_of(values), round(count))
    return scores


# --- for people ----------------------------------------------------------------------------------


def painted_table(result: PaintedResult) -> Group:
    """To print with ``rich``."""
    table = Table(title=result.title)
    table.add_column("")
    for title in ("score", "95 % from", "to", "of"):
        table.add_column(title, justify="right")
    for number, (section, scores) in enumerate(result.scores.items()):
        table.add_section()
        if number:
            table.add_row(section, style="dim")
        for name, score in scores.items():
            low, high = (score.interval.low, score.interval.high) if score.interval else (None,) * 2
            cells = (_number(score.value), _number(low), _number(high), str(score.count))
            table.add_row(f"  {name}" if number else name, *cells, style=None if number else "bold")
    return Group(table, *(Text(note) for note in _notes(result)))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _notes(result: PaintedResult) -> list[str]:
    name = result.answerer.get("model") or result.answerer.get("source")
    lines = [] if result.rewriting is None else result.rewriting.lines()
    lines += [f"answered by {name}"] if name else []
    lines.append(f"{len(result.images)} prompts scored, {len(result.unscored)} not")
    lines += _listed([f"{name}: {reason}" for name, reason in result.unscored.items()])
    return lines + _listed(result.remarks) + result.notes


def _listed(items: Sequence[str]) -> list[str]:
    return first_of([f"  {printable(item)}" for item in items], "  … and {} more")
