"""What a run achieved, for people: a table in the terminal and one self-contained ``report.html``.

The page needs nothing but itself: pictures are PNG in base64, curves inline SVG, and there is no
script. Everything that comes from a run (captions, settings) is escaped by Jinja2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from torch import Tensor

from uae.images.write import png_address
from uae.report.charts import Chart, Point, make_chart
from uae.report.page import render
from uae.types import RoundTrip
from uae.utils.files import atomic_write_text

COLUMNS = ("before", "after", "delta", "ceiling")
MEASURES = {  # key of results.json: (label, explanation)
    "unified_score": (
        "Unified-Score",
        "mean of the four backbones' similarity of reconstruction and source",
    ),
    "clip": ("CLIP", "cosine × 100"),
    "longclip": ("LongCLIP", "cosine × 100"),
    "dinov2": ("DINOv2", "cosine × 100"),
    "dinov3": ("DINOv3", "cosine × 100"),
    "rescaled_score": (
        "rescaled score",
        "0: no better than another image's reconstruction; 100: identical",
    ),
    "unified_score_if_true": (
        "if captions were true",
        "Unified-Score of true captions with as much detail",
    ),
    "reconstruction_objects_exact": (
        "objects exactly right",
        "shape, colour, size and place, in reconstructions, %",
    ),
    "geneval": ("GenEval-style", "short prompts drawn right, mean of six kinds, %"),
    "perception": ("questions", "answered right, %"),
    "perception_small": ("questions, small objects", "answered right, %"),
    "caption_tokens": ("caption length", "words"),
    "caption_precision": ("caption precision", "mentions that are true, %"),
    "caption_recall": ("caption recall", "objects that are named, %"),
    "caption_complete": ("complete objects", "described with every attribute, and rightly, %"),
    "small_recall": ("small-object recall", "small objects described with every attribute, %"),
}
SPLIT = {  # key in `gain` of results.json: (label, explanation)
    "detail": ("by saying more", "what the gain would be were all captions true"),
    "correctness": ("by being right", "how much more of what is said is true"),
}
BY_TAG = "GenEval-style, by kind"
_BACKBONES = ("clip", "longclip", "dinov2", "dinov3")
_INDENTED = (*_BACKBONES, "rescaled_score", "unified_score_if_true")
_CURVES = {  # title: metrics of one chart
    "Caption length (tokens)": ("caption/tokens",),
    "Entropy per token": ("rl/entropy",),
    "KL from the reference": ("rl/kl",),
    "Entropy per image token": ("rl_image/entropy",),
    "KL from the reference, images": ("rl_image/kl",),
    "Gradient norm": ("rl/grad_norm",),
    "Reward spread within groups": ("reward/group_std",),
}
_NOT_REWARDS = ("group_std", "tied_frac", "fixed_captions")


# --- terminal ------------------------------------------------------------------------------------


def results_table(
    results: Mapping[str, Any],
    reward_backbones: Sequence[str] = (),
    lead: str = "unified_score",
) -> Table:
    """Before, after, delta and ceiling of every measure; backbones that were the reward are
    marked, and ``lead``, the measure that the run is about."""
    table = Table(
        title=f"Unified-GRPO, {results.get('family', 'model')}, seed {results.get('seed', '-')}"
    )
    table.add_column("measure")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in table_rows(results, reward_backbones):
        label = f"  {row.label}" if row.indented else row.label
        style = "bold" if row.key == lead else None
        table.add_row(label + (" (reward)" if row.was_reward else ""), *row.values, style=style)
    return table


def breakdown_table(breakdown: Breakdown) -> Table:
    """Shares with their intervals, as on the page."""
    table = Table(title=f"{breakdown.title}, %")
    table.add_column("kind")
    for column in breakdown.columns:
        table.add_column(column, justify="right")
    for name, values in breakdown.rows:
        table.add_row(name, *values)
    return table


class TableRow(NamedTuple):
    """One measure, ready to show."""

    key: str
    label: str
    explanation: str
    values: list[str]
    indented: bool
    was_reward: bool


def table_rows(results: Mapping[str, Any], reward_backbones: Sequence[str] = ()) -> list[TableRow]:
    """The measures that ``results`` holds, in order."""
    rows = []
    for key, (label, explanation) in MEASURES.items():
        if not any(key in results.get(column, {}) for column in COLUMNS):
            continue
        values = [number_text(results, column, key) for column in COLUMNS]
        rows.append(
            TableRow(key, label, explanation, values, key in _INDENTED, key in reward_backbones)
        )
        if key == "unified_score":
            rows += _split_rows(results.get("gain", {}))
    return rows


def _split_rows(gain: Mapping[str, float | None]) -> list[TableRow]:
    """What the gain in Unified-Score is made of."""
    rows = []
    for key, (label, explanation) in SPLIT.items():
        if (value := gain.get(key)) is not None:
            values = [f"{value:+.2f}" if column == "delta" else "" for column in COLUMNS]
            rows.append(TableRow(key, label, explanation, values, True, False))
    return rows


def number_text(results: Mapping[str, Any], column: str, key: str) -> str:
    """Two decimals, signed where it is a difference; a dash where there is no number."""
    value = results.get(column, {}).get(key)
    if value is None:
        return "–"
    return f"{value:+.2f}" if column == "delta" else f"{value:.2f}"


# --- page ----------------------------------------------------------------------------------------


class Frame(NamedTuple):
    """One image's caption and reconstruction ``[3, h, w]`` after so many steps of training."""

    step: int
    caption: str
    reconstruction: Tensor


@dataclass(frozen=True)
class RunReport:
    """What the page of a run shows."""

    results: Mapping[str, Any]
    """As in ``results.json``."""
    metrics: Sequence[Mapping[str, Any]] = ()
    """Lines of ``metrics.jsonl``."""
    before: Sequence[RoundTrip] = ()
    """Round trips of some images by the model as it was."""
    after: Sequence[RoundTrip] = ()
    """Those of the same images by the trained model."""
    strip: Sequence[Frame] = ()
    """One image at several steps."""
    strip_source: Tensor | None = None
    """That image."""
    prompts: Sequence[Sequence[Frame]] = ()
    """Prompts, each painted at several steps."""
    lead: str = "unified_score"
    """The measure that the run is about."""
    reward_backbones: Sequence[str] = ()
    """Backbones that were the reward, to be marked."""

    def __post_init__(self) -> None:
        if len(self.before) != len(self.after):
            raise ValueError(
                "expected the same images before and after, got "
                f"{len(self.before)} and {len(self.after)}"
            )


def write_report(path: Path | str, report: RunReport) -> None:
    """``render_report`` into a file, whole or not at all."""
    atomic_write_text(path, render_report(report))


def render_report(report: RunReport) -> str:
    """The page as one string."""
    results = report.results
    return render(
        "report.html.j2",
        family=results.get("family", "model"),
        lead=report.lead,
        lead_label=MEASURES[report.lead][0],
        score={column: number_text(results, column, report.lead) for column in COLUMNS},
        columns=COLUMNS,
        rows=table_rows(results, report.reward_backbones),
        breakdowns=breakdowns(results),
        charts=learning_curves(report.metrics),
        trips=[_trip(b, a) for b, a in zip(report.before, report.after, strict=True)],
        strip=[_frame(frame) for frame in report.strip],
        strip_source=None if report.strip_source is None else png_address(report.strip_source),
        prompts=[[_frame(frame) for frame in frames] for frames in report.prompts],
        facts=facts(results),
    )


def _frame(frame: Frame) -> dict[str, Any]:
    return {
        "step": frame.step,
        "caption": frame.caption,
        "image": png_address(frame.reconstruction),
    }


def _trip(before: RoundTrip, after: RoundTrip) -> dict[str, Any]:
    return {
        "source": png_address(before.source),
        "before": {"caption": before.caption, "image": png_address(before.reconstruction)},
        "after": {"caption": after.caption, "image": png_address(after.reconstruction)},
    }


def learning_curves(metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Of whatever was logged."""
    logged = sorted({name for row in metrics for name in row})
    rewards = {
        title: [
            name
            for name in logged
            if name.startswith(prefix) and name.removeprefix(prefix) not in _NOT_REWARDS
        ]
        for title, prefix in (("Reward", "reward/"), ("Reward of prompts", "prompts/reward/"))
    }
    drawn = [
        make_chart(
            title,
            {name.rpartition("/")[2]: curve(metrics, name) for name in names if name in logged},
        )
        for title, names in {**rewards, **_CURVES}.items()
    ]
    return [chart for chart in drawn if chart is not None]


def curve(metrics: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    """A metric where it was logged, by step."""
    return [(row["step"], row[name]) for row in metrics if row.get(name) is not None]


class Breakdown(NamedTuple):
    """A table of shares: by name, what each column says, as text."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def breakdowns(results: Mapping[str, Any]) -> list[Breakdown]:
    """Shares with their 95 % intervals, where ``results`` carries details."""
    places = {
        BY_TAG: ("geneval",),
        "Questions, by kind": ("perception",),
        "Reconstructed objects, by attribute": ("objects", "by_attribute"),
        "Reconstructed objects exactly right, by size": ("objects", "by_size"),
    }
    details = results.get("details", {})
    columns = [column for column in ("before", "after", "ceiling") if details.get(column)]
    tables = []
    for title, place in places.items():
        shares = {column: _dig(details[column], place) for column in columns}
        shares = {column: by_name for column, by_name in shares.items() if by_name}
        names = list(dict.fromkeys(name for by_name in shares.values() for name in by_name))
        rows = [
            (name.replace("_", " "), [_share(by_name.get(name)) for by_name in shares.values()])
            for name in names
        ]
        if rows:
            tables.append(Breakdown(title, list(shares), rows))
    return tables


def _dig(details: Mapping[str, Any], place: Sequence[str]) -> Mapping[str, Any]:
    for key in place:
        details = details.get(key, {})
    return details


def _share(share: Mapping[str, Any] | None) -> str:
    if share is None or share["percent"] is None:
        return "–"
    return f"{share['percent']:.1f} ({share['low']:.0f} to {share['high']:.0f})"


def facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the numbers came about: command, time, seed, settings, versions."""
    run = [
        (key, str(results[key]))
        for key in ("command", "family", "seed", "seconds")
        if key in results
    ]
    settings = [(f"settings: {k}", v) for k, v in _flat(results.get("config", {}))]
    return run + settings + [(f"version: {k}", v) for k, v in _flat(results.get("versions", {}))]


def _flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(values, Mapping):
        return [(prefix or "value", str(values))]
    nested = [
        _flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items()
    ]
    return [pair for pairs in nested for pair in pairs]
