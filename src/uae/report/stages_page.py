"""A pipeline for people: a table in the terminal and one self-contained page, with what was
measured at the start and after each stage, learning curves, and the same pictures described and
painted by each stage's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from uae.images.write import png_address
from uae.report.charts import Chart, make_chart
from uae.report.page import render
from uae.report.run_page import MEASURES, curve, learning_curves, number_text
from uae.types import RoundTrip
from uae.utils.files import atomic_write_json, atomic_write_text
from uae.utils.metrics import read_metrics

IN_TABLE = {  # the terminal's columns
    "Unified-Score": "unified_score",
    "objects exact": "reconstruction_objects_exact",
    "GenEval-style": "geneval",
    "questions": "perception",
    "small objects": "perception_small",
}
NOT_DRAWN = ("step", "time/step_sec", "grad_norm")  # of a supervised stage's log


@dataclass(frozen=True)
class StageResult:
    """One column of the report."""

    name: str
    numbers: dict[str, float | None]
    """As ``WorldResult.numbers``."""
    metrics: list[dict[str, Any]]
    """Lines of its ``metrics.jsonl``; none of the start."""
    samples: list[dict[str, str]]
    """Round trips as ``sample_to_json`` wrote them."""


def report_stages(title: str, records: Sequence[Mapping[str, Any]], run_dir: Path) -> Table:
    """Write what was measured, as ``stages.json`` and as ``report.html``; the table to print.

    records: of ``stages/pipeline.py``, the start first.
    """
    logs = [[], *map(_log, records[1:])]
    stages = [
        StageResult(each["stage"], each["measured"], log, each["samples"])
        for each, log in zip(records, logs, strict=True)
    ]
    write_stages_report(run_dir / "report.html", title, stages)
    without_pictures = [{k: v for k, v in each.items() if k != "samples"} for each in records]
    atomic_write_json(run_dir / "stages.json", without_pictures)
    return stages_table(stages)


def _log(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a stage's training."""
    path = Path(record["model"]).parent / "metrics.jsonl"
    return read_metrics(path) if path.exists() else []


def stages_table(stages: Sequence[StageResult]) -> Table:
    """A row a stage."""
    table = Table("stage", *IN_TABLE)
    for stage in stages:
        table.add_row(stage.name, *(_number(stage.numbers, key) for key in IN_TABLE.values()))
    return table


def write_stages_report(path: Path, title: str, stages: Sequence[StageResult]) -> None:
    """The page, whole or not at all."""
    rows = [
        {
            "key": key,
            "label": label,
            "explanation": why,
            "shown": [_number(s.numbers, key) for s in stages],
        }
        for key, (label, why) in MEASURES.items()
    ]
    columns = [
        {"name": stage.name.replace("_", " "), "charts": stage_charts(stage.metrics)}
        for stage in stages
    ]
    page = render("stages.html.j2", title=title, rows=rows, stages=columns, trips=_trips(stages))
    atomic_write_text(path, page)


def stage_charts(metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Of reinforcement learning as in a run's report; of a supervised stage each value that it
    logged."""
    if any("reward/total" in row for row in metrics):
        return learning_curves(metrics)
    names = dict.fromkeys(name for row in metrics for name in row if name not in NOT_DRAWN)
    drawn = [make_chart(name, {name: curve(metrics, name)}) for name in names]
    return [chart for chart in drawn if chart is not None]


def sample_to_json(sample: RoundTrip) -> dict[str, str]:
    """Pictures as ``data:`` addresses."""
    return {
        "source": png_address(sample.source),
        "caption": sample.caption,
        "image": png_address(sample.reconstruction),
    }


def _number(numbers: Mapping[str, Any], key: str) -> str:
    return number_text({"it": numbers}, "it", key)


def _trips(stages: Sequence[StageResult]) -> list[dict[str, Any]]:
    """Each picture with what all stages made of it."""
    number = min((len(stage.samples) for stage in stages), default=0)
    return [
        {
            "source": stages[0].samples[i]["source"],
            "frames": [{"stage": s.name.replace("_", " "), **s.samples[i]} for s in stages],
        }
        for i in range(number)
    ]
