"""Two models side by side: one table, one page, and what was measured is not measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from uae import cli
from uae.bench.compare.paired import compare
from uae.bench.compare.suite import Measure, Part, rows_of
from uae.commands.compare import CompareModels, Sides, extremes
from uae.types import RoundTrip

FEW = ["--num-images", "3", "--prompts-per-tag", "1"]


@pytest.mark.slow
def test_two_models_in_the_world(capsys, tmp_path: Path):
    tmp_path = tmp_path / "not" / "there"
    command = ["bench", "all", "--before", "tiny", "--after", "tiny-early", "--out", str(tmp_path)]
    cli.run([*command, *FEW])
    shown = capsys.readouterr().out
    for part in ("unification", "generation", "understanding"):
        assert f"{part}: tiny" in shown
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    by_name = {row["measure"]: row for row in comparison["measures"]}
    official = {
        side: json.loads((tmp_path / side / "unified.json").read_text())["uae"]["unified_score"]
        for side in ("before", "after")
    }
    score = by_name["Unified-Score"]
    assert score["before"] == pytest.approx(official["before"])
    assert score["after"] == pytest.approx(official["after"])
    assert score["delta"] > 50 and score["low"] > 0  # the other one is asked for detail
    assert by_name["LongCLIP"]["num_items"] == 3
    assert by_name["GenEval: pictures right"]["num_items"] == 6
    assert by_name["questions right"]["num_items"] == 15
    geneval = json.loads((tmp_path / "before" / "geneval.json").read_text())
    assert by_name["GenEval: pictures right"]["before"] == pytest.approx(
        geneval["images"]["percent"]
    )
    page = (tmp_path / "report.html").read_text()
    assert "What gained most" in page and page.count("data:image/png;base64,") == 3 * 3
    assert "| unification | Unified-Score |" in (tmp_path / "comparison.md").read_text()

    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.png")}
    cli.run([*command, *FEW])
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.png")}


def test_what_is_compared_is_asked_for():
    with pytest.raises(ValueError, match="expected two models, got tiny twice"):
        CompareModels("tiny", "tiny").given()
    with pytest.raises(ValueError, match="expected what to measure on: give --images DIR"):
        CompareModels("a/b", "c/d").given()
    own = CompareModels("a/b", "c/d", images="photos").given()
    assert [part.title for part in own.parts()] == ["unification"]
    world = CompareModels("tiny", "my_run/model").given()
    assert [part.title for part in world.parts()] == [
        "unification",
        "generation",
        "understanding",
    ]


def test_measures_that_both_have_become_rows():
    part = Part("generation", lambda model, folder: None, lambda *given: [])  # type: ignore
    before = [
        Measure("a", {"x": 0.0, "y": 1.0}),
        Measure("b", {"x": 1.0}),
        Measure("c", {"q": 0.0}),
    ]
    after = [Measure("a", {"x": 1.0, "y": 1.0}), Measure("c", {"r": 1.0})]
    (row,) = rows_of(part, before, after, seed=0)
    assert (row.part, row.measure) == ("generation", "a")
    assert row.paired == compare(before[0].values, after[0].values)
    assert row.shown()["delta"] == "+50.00" and row.shown()["items"] == "2"


def test_best_and_worst_are_those_that_changed_most():
    def trip(text: str) -> RoundTrip:
        return RoundTrip(torch.zeros(3, 2, 2), text, torch.zeros(3, 2, 2))

    names = [f"{i}.png" for i in range(20)]
    sides = Sides(
        trips={
            "old": {name: trip(f"old {name}") for name in names},
            "new": {name: trip(f"new {name}") for name in names[:-1]},
        },
        similarity={
            "old": dict.fromkeys(names, 0.5),
            "new": {name: 0.5 + (i - 9) / 100 for i, name in enumerate(names)},
        },
    )
    best, worst = extremes(sides, ("old", "new"))
    assert [each.name for each in best] == [f"{i}.png" for i in range(18, 12, -1)]
    assert [each.name for each in worst] == [f"{i}.png" for i in range(6)]
    assert best[0].delta == pytest.approx(9.0) and worst[0].delta == pytest.approx(-9.0)
    assert best[0].before.caption == "old 18.png" and best[0].after.caption == "new 18.png"
    assert extremes(Sides(), ("old", "new")) == ([], [])
