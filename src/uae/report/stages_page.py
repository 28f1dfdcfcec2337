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
from uae.report.run_page import MEASURES, charts, environment, shown
from uae.report.samples import Sample
from uae.utils.files import atomic_write_text

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
    page = (
        environment()
        .get_template("stages.html.j2")
        .render(title=title, rows=rows, stages=columns, trips=_trips(stages))
    )
    atomic_write_text(path, page)


def stage_charts(metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Of reinforcement learning as in a run's report; of a supervised stage each value that it
    logged."""
    if any("reward/total" in row for row in metrics):
        return charts(metrics)
    names = dict.fromkeys(name for row in metrics for name in row if name not in NOT_DRAWN)
    made = [
        make_chart(n, {n: [(row["step"], row[n]) for row in metrics if row.get(n) is not None]})
        for n in names
    ]
    return [chart for chart in made if chart is not None]


def sample_to_json(sample: Sample) -> dict[str, str]:
    """Pictures as ``data:`` addresses."""
    return {
        "source": png_address(sample.source),
        "caption": sample.caption,
        "image": png_address(sample.reconstruction),
    }


def _number(numbers: Mapping[str, Any], key: str) -> str:
    return shown({"it": numbers}, "it", key)


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
