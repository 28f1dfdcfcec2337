"""Whole tables with predictions, scored by the command's own path, against VLMEvalKit's code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.bench.choice.tables import write_tsv
from tests.bench.oracles import oracle
from uae.bench.choice.benchmark import ChoiceBench
from uae.bench.choice.result import ChoiceResult


def tables() -> list[dict[str, Any]]:
    return oracle("choice_circular.json.gz")["tables"]


def scored(folder: Path, table: dict[str, Any], **options: Any) -> ChoiceResult:
    rows = table["input"]["rows"]
    questions = [{k: v for k, v in row.items() if k != "prediction"} for row in rows]
    predicted = [
        {"index": row["index"], "prediction": row["prediction"]}
        for row in rows
        if "prediction" in row
    ]
    benchmark = ChoiceBench(
        data=str(write_tsv(folder / f"{table['dataset']}.tsv", questions)),
        predictions=write_tsv(folder / "predictions.tsv", predicted),
        out=folder / "result.json",
        **options,
    )
    benchmark.check()
    assert benchmark.task() is None
    return benchmark.score(None)


def official_report(result: ChoiceResult) -> dict[str, dict[str, float | None]]:
    """The columns as the official report names them; there the later of equal names wins."""
    columns = {}
    for split, scores in result.splits.items():
        levels = [scores.l2_categories, scores.categories]
        if "MMT" in result.dataset:
            levels.reverse()
        columns[split] = {
            "Overall": scores.overall.percent,
            **{name: score.percent for level in levels for name, score in level.items()},
        }
    return columns


def test_hits_as_officially(tmp_path: Path):
    for table in tables():
        official = table["official"]
        expected = official.get("hits_if_options_stay_text", official["hits"])
        result = scored(tmp_path, table)
        assert {str(k): int(v) for k, v in result.hits.items()} == expected, table["dataset"]


def test_hits_with_the_defect_of_spreadsheets(tmp_path: Path):
    for table in tables():
        result = scored(tmp_path, table, official_defects=True)
        hits = {str(k): int(v) for k, v in result.hits.items()}
        assert hits == table["official"]["hits"], table["dataset"]
        assert any("spreadsheet" in note for note in result.notes)


def test_reports_as_officially(tmp_path: Path):
    for table in tables():
        report = official_report(scored(tmp_path, table, official_defects=True))
        for split, columns in table["official"]["report"].items():
            for name, value in columns.items():
                ours = report[split].get(name)
                if value is None:
                    assert ours is None, (table["dataset"], split, name)
                else:
                    assert ours is not None
                    assert math.isclose(ours, 100 * value, abs_tol=1e-9), (split, name)
            extra = {name for name in report[split] if report[split][name] is not None}
            assert extra <= columns.keys()


@pytest.mark.parametrize(("name", "method"), [("MMStar", "plain"), ("x_CirCular", "circular")])
def test_the_name_says_how_it_is_evaluated(name: str, method: str):
    assert ChoiceBench(data=f"{name}.tsv").method == method
    assert ChoiceBench(data="a.tsv", dataset=name).method == method
    assert ChoiceBench(data=f"{name}.tsv", evaluation="plain").method == "plain"
