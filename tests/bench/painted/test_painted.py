"""Pictures of prompts: found in both kinds of folders, whatever else lies there; and intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.bench.scripted import paint
from uae.bench.bootstrap import resampled
from uae.bench.painted.pictures import find_pictures
from uae.bench.painted.result import PaintedResult, Score, painted_table, ratio_scores
from uae.bench.result import Interval, Share

ROWS = {"0": {"prompt": "a cat"}, "1": {"prompt": "a dog"}, "2": {"prompt": "a cow"}}


def stem(file: str) -> str:
    return file.split(".", 1)[0]


def folder_of(root: Path, name: str, prompt: object, *colors: str) -> None:
    for k, color in enumerate(colors):
        paint(root / name / "samples" / f"{k:05}.png", color)
    (root / name).mkdir(exist_ok=True)
    (root / name / "metadata.jsonl").write_text(json.dumps(prompt))


def test_files_are_found_by_name_and_the_rest_is_told(tmp_path: Path):
    paint(tmp_path / "0.png", "red")
    paint(tmp_path / "0.again.png", "red")  # the same bytes
    paint(tmp_path / "0.other.png", "blue")
    paint(tmp_path / "9.png", "red")
    (tmp_path / "1.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("hello")
    paint(tmp_path / ".hidden.png", "red")
    found = find_pictures(tmp_path, ROWS, stem)
    (first, second), named = found.files["0"], set(found.files)
    assert (first.name, second.name) == ("0.again.png", "0.other.png")
    assert named == {"0"}
    assert found.problems.keys() == {"1", "2"}
    assert found.problems["2"] == "no picture"
    assert "1.png" in found.problems["1"]
    assert found.remarks == [
        "passed over 9.png: no prompt is called 9",
        "0.png: the same as 0.again.png, counted once",
    ]


def test_in_folders_the_prompt_counts_and_not_the_number(tmp_path: Path):
    folder_of(tmp_path, "00000", {"prompt": "a cow"}, "red", "blue")
    folder_of(tmp_path, "00001", {"prompt": " a cat "}, "green")
    folder_of(tmp_path, "00002", {"prompt": "a bird"}, "white")
    folder_of(tmp_path, "00003", ["a", "list"], "white")
    folder_of(tmp_path, "00004", {"prompt": 3}, "white")
    (tmp_path / "00005").mkdir()
    found = find_pictures(tmp_path, ROWS, stem)
    places = {name: [str(f.relative_to(tmp_path)) for f in fs] for name, fs in found.files.items()}
    assert places == {
        "0": ["00001/samples/00000.png"],
        "2": ["00000/samples/00000.png", "00000/samples/00001.png"],
    }
    assert found.problems == {"1": "no picture"}
    assert found.remarks == [
        "passed over 00002: its prompt is none of the benchmark's ('a bird')",
        "passed over 00003: expected a prompt in metadata.jsonl",
        "passed over 00004: expected a prompt in metadata.jsonl",
        "passed over 00005: a folder without metadata.jsonl",
    ]


def test_two_rows_of_one_text_have_the_same_pictures_unless_an_id_tells(tmp_path: Path):
    rows = {"a": {"prompt": "x"}, "b": {"prompt": "x"}}
    folder_of(tmp_path, "00000", {"prompt": "x"}, "red")
    found = find_pictures(tmp_path, rows, stem)
    assert found.files["a"] == found.files["b"]
    folder_of(tmp_path, "00000", {"prompt": "x", "item_id": "b"}, "red")
    assert set(find_pictures(tmp_path, rows, stem).files) == {"b"}


def test_no_folder_is_one_clear_line(tmp_path: Path):
    with pytest.raises(ValueError, match="expected a folder of pictures"):
        find_pictures(tmp_path / "nowhere", ROWS, stem)


# --- scores --------------------------------------------------------------------------------------


def test_scores_are_ratios_and_their_intervals_draw_prompts():
    prompts = [{"a": (1.0, 1.0), "b": (1.0, 4.0)}, {"a": (0.0, 1.0)}, {"a": (1.0, 1.0)}] * 20
    scores = ratio_scores(prompts, 500, seed=0)
    assert scores["a"].value == pytest.approx(200 / 3) and scores["a"].count == 60
    assert scores["b"].value == 25 and scores["b"].count == 80
    assert scores["b"].interval == Interval(25.0, 25.0)
    # of 60 independent prompts, about 1.96 standard errors on each side
    spread = 196 * math.sqrt((2 / 9) / 60)
    interval = scores["a"].interval
    assert interval.high - interval.low == pytest.approx(2 * spread, rel=0.15)
    assert ratio_scores(prompts, 500, seed=0) == scores
    assert ratio_scores([], 10, seed=0) == ratio_scores([{}], 10, seed=0) == {}


def test_draws_are_those_of_a_plain_loop():
    prompts = [{"a": (float(i), 2.0)} for i in range(5)]
    counts = np.random.default_rng(3).multinomial(5, [0.2] * 5, size=4)
    expected = [100 * sum(n * i for i, n in enumerate(row)) / (2 * 5) for row in counts]
    assert resampled(prompts, 4, seed=3)["a"] == pytest.approx(expected)


def test_a_result_says_what_it_lacks():
    share = Score.of_share(Share(1, 4))
    result = PaintedResult(
        "T", {"overall": {"all": share}}, {"0": 1}, {"1": "no picture"}, [], [], {}, {}, True
    )
    written = result.to_json()
    assert written["scores"]["overall"]["all"]["value"] == 25
    assert written["unscored"] == {"1": "no picture"} and written["partial"] is True
    assert {"python", "torch"} <= written["versions"].keys()
    lines = [str(each) for each in painted_table(result).renderables[1:]]
    assert "1 prompts scored, 1 not" in lines and "  1: no picture" in lines
