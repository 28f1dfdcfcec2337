"""GenEval 2 from pictures to numbers, with an answerer that looks at colours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.scripted import ScriptedAsker, paint
from uae.bench.api import Benchmark
from uae.bench.geneval2.benchmark import GenEval2, read_prompt
from uae.bench.run import run_benchmark

ROWS = [
    {
        "prompt": "two red cups",
        "vqa_list": [["Is it red?", "Yes"], ["How many cups are in the image?", "two"]],
        "skills": ["attribute", "count"],
        "atom_count": 3,
    },
    {
        "prompt": "a blue dog",
        "vqa_list": [["Is it blue?", "Yes"], ["Are there any dogs?", "Yes"]],
        "skills": ["attribute", "object"],
        "atom_count": 4,
    },
]
RED, BLUE = (255, 0, 0), (0, 0, 255)


def probabilities(question, color) -> list[float]:
    """Sure of colours, half sure of the rest; each over four forms, or six."""
    assert question.text.endswith("? Answer in one word.")
    name = {RED: "red", BLUE: "blue"}[color]
    if question.text.startswith("How many"):
        return [0.25, 0.25, 0, 0, 0, 0]
    if "Is it" in question.text:
        return [0.9, 0.1, 0, 0] if name in question.text else [0.04, 0, 0, 0]
    return [0.5, 0, 0, 0]


def bench(tmp_path: Path, rows: list[dict] = ROWS, **options) -> GenEval2:
    prompts = tmp_path / "geneval2.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    defaults = {"images": tmp_path / "pictures", "num_bootstrap": 50, "out": tmp_path / "g.json"}
    options.setdefault("answerer", ScriptedAsker(probabilities))
    return GenEval2(prompts=prompts, **(defaults | options))


def run(benchmark: GenEval2):
    assert isinstance(benchmark, Benchmark)
    return run_benchmark(benchmark, lambda source: None, lambda *shown: None)


def test_numbers_by_hand(tmp_path: Path):
    paint(tmp_path / "pictures/00000.png", RED)
    paint(tmp_path / "pictures/1.png", RED)  # should be blue
    result = run(bench(tmp_path))
    assert result.images["00000"] == [{"am": 0.75, "gm": 0.5**0.5, "atoms": [1.0, 0.5]}]
    assert result.images["00001"][0]["atoms"] == [0.04, 0.5]
    overall = {name: score.value for name, score in result.scores["overall"].items()}
    geometric = 100 * (0.5**0.5 + 0.02**0.5) / 2
    assert overall == pytest.approx({"soft_tifa_gm": geometric, "soft_tifa_am": 51.0})
    skills = result.scores["by skill (arithmetic, atoms pooled)"]
    assert {n: (s.value, s.count) for n, s in skills.items()} == {
        "attribute": (pytest.approx(52), 2),
        "count": (50, 1),
        "object": (50, 1),
    }
    counts = result.scores["by number of atoms (geometric)"]
    expected = {"3": 100 * 0.5**0.5, "4": 100 * 0.02**0.5}
    assert {n: s.value for n, s in counts.items()} == pytest.approx(expected)
    assert not result.partial


def test_prompts_in_another_order_and_the_official_list_of_paths(tmp_path: Path):
    paint(tmp_path / "pictures/00000.png", RED)
    paint(tmp_path / "pictures/00001.png", BLUE)
    expected = run(bench(tmp_path)).scores
    listed = {"a blue dog": "pictures/00001.png", "two red cups": "pictures/00000.png", "x": "y"}
    (tmp_path / "paths.json").write_text(json.dumps(listed))
    result = run(bench(tmp_path, ROWS[::-1], images=tmp_path / "paths.json"))
    for section, scores in expected.items():
        found = result.scores[section]
        assert {n: s.value for n, s in found.items()} == pytest.approx(
            {n: s.value for n, s in scores.items()}
        )
    assert len(result.remarks) == 1 and "of no prompt" in result.remarks[0]
    assert not result.partial


def test_missing_corrupt_and_unanswered_are_named(tmp_path: Path):
    rows = [*ROWS, {"prompt": "z", "vqa_list": [["Is it?", "Yes"]]}, ROWS[0] | {"prompt": "w"}]
    paint(tmp_path / "pictures/00000.png", RED)
    (tmp_path / "pictures/00001.png").write_bytes(b"")
    paint(tmp_path / "pictures/00002.png", BLUE)
    asker = ScriptedAsker(lambda q, c: "timed out" if c == BLUE else probabilities(q, c))
    result = run(bench(tmp_path, rows, answerer=asker))
    assert result.unscored["00002"] == "timed out" and result.unscored["00003"] == "no picture"
    assert "00001.png" in result.unscored["00001"]
    assert result.scores["overall"]["soft_tifa_am"].value == 75.0
    assert result.partial
    again = ScriptedAsker(probabilities)
    assert set(run(bench(tmp_path, rows, answerer=again)).unscored) == {"00001", "00003"}
    assert [question.text for question in again.asked] == ["Is it? Answer in one word."]


def test_hard_tifa_needs_no_probabilities(tmp_path: Path):
    paint(tmp_path / "pictures/00000.png", RED)
    paint(tmp_path / "pictures/00001.png", BLUE)
    asker = ScriptedAsker(lambda q, color: "2" if q.text.startswith("How many") else "YES")
    result = run(bench(tmp_path, answerer=asker, hard=True))
    assert {n: s.value for n, s in result.scores["overall"].items()} == {"tifa": 100.0}
    other = ScriptedAsker(lambda q, color: "No")
    result = run(bench(tmp_path, answerer=other, hard=True, out=tmp_path / "o.json"))
    assert result.scores["overall"]["tifa"].value == 0.0


def test_atoms_above_one_are_told(tmp_path: Path):
    for place, color in enumerate((RED, BLUE)):
        paint(tmp_path / f"pictures/{place}.png", color)
    asker = ScriptedAsker(lambda q, color: [0.5] * 3 if "red" in q.text else [0.5])
    result = run(bench(tmp_path, answerer=asker))
    assert result.scores["overall"]["soft_tifa_am"].value == pytest.approx(100 * 3 / 4)
    assert result.notes[0].startswith("1 of 4 atoms are above 1")


def test_no_file_of_prompts_is_one_clear_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"n.jsonl: expected the benchmark's file of prompts"):
        GenEval2(prompts=tmp_path / "n.jsonl", out=tmp_path / "g.json").check()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "x"}, r"expected a vqa_list of \[question, answer\], got None"),
        ({"prompt": "x", "vqa_list": [["q"]]}, "expected a vqa_list"),
        ({"prompt": "x", "vqa_list": [["q", "a"]], "skills": []}, "expected 1 skills"),
        (
            {"prompt": "x", "vqa_list": [["q", "a"]], "atom_count": "3"},
            "expected a whole number as atom_count",
        ),
    ],
)
def test_a_broken_row_is_one_clear_line(row: dict, words: str):
    with pytest.raises(ValueError, match=f"file, prompt 1: {words}"):
        read_prompt(row, "file, prompt 1")


def test_a_list_of_paths_that_is_none(tmp_path: Path):
    (tmp_path / "paths.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object from prompt to picture"):
        run(bench(tmp_path, images=tmp_path / "paths.json"))
    (tmp_path / "paths.json").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match="expected a folder of pictures, or JSON"):
        run(bench(tmp_path, images=tmp_path / "paths.json"))
