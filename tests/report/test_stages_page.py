"""A pipeline's table and page: numbers by stage, curves by kind of stage, user text escaped."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from uae.report.stages_page import StageResult, sample_to_json, stages_table, write_stages_report
from uae.types import RoundTrip

SUPERVISED = [
    {"step": i, "loss": 1.0 / (i + 1), "grad_norm": 2.0, "time/step_sec": 0.1} for i in range(3)
]
RL = [{"step": i, "reward/total": 0.1 * i, "caption/tokens": 9.0} for i in range(3)]


def stages() -> list[StageResult]:
    samples = [
        sample_to_json(RoundTrip(torch.zeros(3, 4, 4), "<b>a ring</b>", torch.ones(3, 4, 4)))
    ]
    numbers = {"unified_score": 16.8, "geneval": None, "perception": 91.5}
    return [
        StageResult("start", numbers, [], samples),
        StageResult("long_captions", {**numbers, "unified_score": 20.25}, SUPERVISED, samples),
        StageResult(
            "generation_for_understanding", {**numbers, "unified_score": 98.9}, RL, samples
        ),
    ]


def test_the_table_has_a_row_a_stage():
    columns = [list(column.cells) for column in stages_table(stages()).columns]
    assert columns[0] == ["start", "long_captions", "generation_for_understanding"]
    assert columns[1] == ["16.80", "20.25", "98.90"]
    assert columns[3] == ["–", "–", "–"]


def test_the_page_has_numbers_curves_and_escaped_captions(tmp_path: Path):
    write_stages_report(tmp_path / "report.html", "uae train <i>", stages())
    page = (tmp_path / "report.html").read_text()
    assert "<i>" not in page.replace("<i class", "") and "uae train &lt;i&gt;" in page
    assert "<b>a ring</b>" not in page and page.count("&lt;b&gt;a ring&lt;/b&gt;") == 3
    row = page[page.index("Unified-Score") :]
    assert re.findall(r"<td>([^<]*)</td>", row)[:3] == ["16.80", "20.25", "98.90"]
    titles = re.findall(r"<h3>([^<]*)</h3>", page)
    assert titles == ["loss", "Reward", "Caption length (tokens)"]
