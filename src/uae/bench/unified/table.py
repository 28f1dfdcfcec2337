"""Unified-Bench results for people: a table beside the published rows, and what could not be
scored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from rich.console import Group
from rich.table import Table
from rich.text import Text

from uae.bench.result import first_of
from uae.bench.unified.result import BACKBONES, BackboneScore, UnifiedResult
from uae.similarity.checkpoints import TINY
from uae.utils.messages import printable

TITLES = {"clip": "CLIP", "longclip": "LongCLIP", "dinov2": "DINOv2", "dinov3": "DINOv3"}
Cell = Callable[[BackboneScore], float | None]


@dataclass(frozen=True)
class PublishedRow:
    """Scores of one model, as in the paper's table, times 100; None where a backbone is missing."""

    clip: float | None
    longclip: float | None
    dinov2: float | None
    dinov3: float | None
    overall: float | None

    @classmethod
    def of(cls, result: UnifiedResult) -> PublishedRow:
        scores = {name: score.score for name, score in result.scores.items()}
        return cls(overall=result.unified_score, **{name: scores.get(name) for name in BACKBONES})

    @classmethod
    def read(cls, file: Path) -> PublishedRow:
        """Of a result file, ours or the official scorer's, whose overall is none where it leaves a
        backbone out.

        Raises:
            ValueError: where it is no such file.
        """
        try:
            summary = json.loads(file.read_text(encoding="utf-8"))["summary"]
            averages = summary["average_scores_by_model"]
            scores = {
                name: 100 * averages[name] if name in averages else None for name in BACKBONES
            }
            is_whole = None not in scores.values()
            overall = 100 * summary["overall_average"] if is_whole else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}: expected a result of Unified-Bench, got {type(error).__name__}: "
                f"{error}; give a file that `uae bench unified` or the official scorer wrote"
            ) from error
        return cls(overall=overall, **scores)

    @property
    def cells(self) -> list[str]:
        """Two decimals, a dash where there is no number."""
        return [number(getattr(self, name)) for name in (*BACKBONES, "overall")]


PUBLISHED = {  # arXiv 2509.09666, Unified-Bench, Protocol 1
    "GPT-4o-Image": PublishedRow(90.42, 94.37, 81.74, 77.27, 85.95),
    "BAGEL": PublishedRow(88.97, 93.35, 78.55, 73.05, 83.48),
    "BLIP-3o": PublishedRow(84.84, 90.24, 68.31, 62.86, 76.56),
    "Janus-Pro": PublishedRow(88.72, 93.45, 78.30, 70.61, 82.77),
    "OmniGen2": PublishedRow(88.36, 93.11, 77.70, 74.07, 83.31),
    "Show-o": PublishedRow(80.18, 86.75, 58.20, 51.51, 69.16),
    "UniWorld-V1": PublishedRow(85.49, 91.53, 72.12, 66.83, 78.99),
    "UAE": PublishedRow(90.50, 94.35, 81.98, 77.54, 86.09),
}


def unified_table(
    result: UnifiedResult,
    label: str = "this run",
    others: Mapping[str, PublishedRow] = MappingProxyType({}),
) -> Group:
    """The table and the notes under it, to print with ``rich``. others: results to stand beside
    this one."""
    table = Table(title="Unified-Bench, Protocol 1 (cosine x 100)")
    table.add_column("model")
    for title in (*TITLES.values(), "Overall"):
        table.add_column(title, justify="right")
    if comparable(result):
        table.add_row("published", style="dim")
        for model, row in PUBLISHED.items():
            table.add_row(f"  {model}", *row.cells)
        table.add_section()
    for name, row in others.items():
        table.add_row(printable(name), *row.cells)
    overall, interval = result.unified_score, result.overall_interval
    rows: list[tuple[str, Cell, str]] = [
        (label, lambda score: score.score, "partial" if result.partial else number(overall)),
        ("  95 % from", lambda score: score.interval.low, number(interval and interval.low)),
        ("  95 % to", lambda score: score.interval.high, number(interval and interval.high)),
        ("  shuffled pairs", lambda score: score.shuffled, ""),
        ("  rescaled", lambda score: score.rescaled, number(result.rescaled_score)),
    ]
    for name, cell, last in rows:
        style = "bold" if name == label else None
        table.add_row(name, *backbone_cells(result, cell), last, style=style)
    return Group(table, *(Text(note) for note in notes(result)))


def markdown(label: str, result: UnifiedResult, others: Mapping[str, PublishedRow]) -> str:
    """The same as a Markdown table, the paper's rows first where they can be compared."""
    rows = {**(PUBLISHED if comparable(result) else {}), **others, label: PublishedRow.of(result)}
    header = ["model", *TITLES.values(), "Overall"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    lines += [[_in_markdown(name), *row.cells] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _in_markdown(text: str) -> str:
    """As a cell shows it, whatever it contains."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", printable(text))


def comparable(result: UnifiedResult) -> bool:
    """Other backbones than the published ones give numbers on another scale."""
    return all(score.provenance["source"] != TINY for score in result.scores.values())


def backbone_cells(result: UnifiedResult, cell: Cell) -> list[str]:
    """One for each of the four, with or without an answer."""
    scores = [result.scores.get(name) for name in BACKBONES]
    return [number(score and cell(score)) for score in scores]


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def notes(result: UnifiedResult) -> list[str]:
    """What a reader must know beside the numbers."""
    lines = [f"Overall: {result.status}"] if result.partial else []
    lines.append(f"{result.valid_pairs} of {result.total_images} images scored")
    lines += listed("not scored", [f"{name}: {reason}" for name, reason in result.unscored.items()])
    lines += listed("reconstruction without a source", result.extra_reconstructions)
    if not comparable(result):
        lines.append("Backbones of the embedded world: not comparable with published rows.")
    return lines


def listed(what: str, items: list[str]) -> list[str]:
    lines = [f"  {what}: {printable(item)}" for item in items]
    return first_of(lines, f"  … and {{}} more {what}")
