"""GenEval++ from pictures to numbers, with a judge whose replies are written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.oracles import oracle
from tests.bench.scripted import ScriptedAsker, paint
from uae.bench.api import Benchmark
from uae.bench.genevalpp.benchmark import GenEvalPlusPlus, check_row
from uae.bench.run import run_benchmark

RED, BLUE = (255, 0, 0), (0, 0, 255)


def rows_of(*tags: str) -> list[dict]:
    return [
        {"tag": tag, "include": [{"class": "cup", "count": n}], "prompt": f"{n} cups, {tag}"}
        for n, tag in enumerate(tags, 1)
    ]


def bench(tmp_path: Path, rows: list[dict], judge, **options) -> GenEvalPlusPlus:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "\n\n".join(json.dumps(row) for row in rows)
    )  # empty lines count for nothing
    defaults = {"images": tmp_path / "pictures", "num_bootstrap": 50, "out": tmp_path / "g.json"}
    return GenEvalPlusPlus(prompts=prompts, answerer=judge, **(defaults | options))


def run(benchmark: GenEvalPlusPlus):
    assert isinstance(benchmark, Benchmark)
    return run_benchmark(benchmark, lambda source: None, lambda *shown: None)


def likes_red(question, color) -> str:
    return f'{{"correct": {int(color[0] > 200)}, "reason": "r"}}'


def test_the_official_tables_from_files(tmp_path: Path):
    for table in oracle("genevalpp_summary.json.gz")["tables"]:
        rows, official, root = table["input"]["rows"], table["official"], tmp_path / table["kind"]
        replies = {}
        for number, row in enumerate(rows, 1):
            suffix = "jpg" if row["image"] else "png" if row.get("png_only") else None
            if suffix:
                paint(root / f"pictures/{number}.{suffix}", "red")
            replies[number] = row["replies"]
        root.mkdir(exist_ok=True)

        def say(question, color, replies=replies):
            each = replies[int(question.images[0].stem)]
            reply = each[min(question.attempt, len(each) - 1)]
            return reply if isinstance(reply, str) else None

        # of each prompt one file of its own, so that no two questions are the same
        for number, file in ((int(f.stem), f) for f in (root / "pictures").glob("*.jpg")):
            paint(file, (255, number, 0))
        result = run(bench(root, [row["metadata"] for row in rows], ScriptedAsker(say)))
        for number, expected in enumerate(official["rows"], 1):
            (verdict,) = result.images[str(number)]
            assert verdict["state"] == expected["state"]
            assert verdict["correct"] == expected["correct_field"]
            assert verdict["num_calls"] == expected["calls"]
        tags = {tag: score.value / 100 for tag, score in result.scores["tag"].items()}
        assert tags == pytest.approx(official["tag_accuracy"], abs=1e-12)
        overall = result.scores["overall"]
        assert overall["mean over tags"].value / 100 == official["overall_mean_of_tags"]
        everything = overall["all pictures"].value / 100
        assert round(everything, 4) == official["accuracy_all_samples"]


def test_missing_and_corrupt_pictures_count_as_wrong_and_cost_nothing(tmp_path: Path):
    paint(tmp_path / "pictures/1.jpg", RED)
    paint(tmp_path / "pictures/2.png", RED)
    (tmp_path / "pictures/3.jpg").write_bytes(b"no picture")
    paint(tmp_path / "pictures/5.jpg", RED)
    judge = ScriptedAsker(likes_red)
    result = run(bench(tmp_path, rows_of("a", "a", "b", "b"), judge))
    assert len(judge.asked) == 1
    assert {tag: score.value for tag, score in result.scores["tag"].items()} == {"a": 50, "b": 0}
    assert result.scores["overall"]["mean over tags"].value == 25
    assert result.unscored.keys() == {"2", "3", "4"} and result.partial
    assert result.unscored["2"] == "no picture; counts as wrong"
    assert result.remarks == [
        "passed over 2.png: officially only .jpg is read; --any-format takes it",
        "passed over 5.jpg: no prompt is called 5",
    ]
    other = run(bench(tmp_path, rows_of("a", "a", "b", "b"), judge, any_format=True))
    assert other.scores["tag"]["a"].value == 100


def test_a_reply_that_cannot_be_read_is_asked_for_again_and_never_guessed(tmp_path: Path):
    for number, color in enumerate((RED, BLUE, (1, 2, 3)), 1):
        paint(tmp_path / f"pictures/{number}.jpg", color)

    def say(question, color):
        if color[2] > 200:
            return "正确" if question.attempt < 2 else '{"correct": 1}'
        return likes_red(question, color) if color[0] > 200 else "yes, it is all there: 1"

    judge = ScriptedAsker(say)
    result = run(bench(tmp_path, rows_of("a", "b", "c"), judge))
    assert {n: each[0]["state"] for n, each in result.images.items()} == {
        "1": "judged",
        "2": "judged",
        "3": "unreadable",
    }
    assert [each[0]["num_calls"] for each in result.images.values()] == [1, 3, 3]
    assert {tag: s.value for tag, s in result.scores["tag"].items()} == {"a": 100, "b": 100, "c": 0}
    assert len(judge.asked) == 7 and not result.partial
    assert any(note.startswith("1 pictures got no verdict") for note in result.notes)
    again = ScriptedAsker(say)
    assert run(bench(tmp_path, rows_of("a", "b", "c"), again)).images == result.images
    assert again.asked == []


def test_the_photograph_clause_changes_what_is_asked_and_is_told(tmp_path: Path):
    paint(tmp_path / "pictures/1.jpg", RED)
    judge = ScriptedAsker(likes_red)
    result = run(bench(tmp_path, rows_of("a"), judge, must_be_photograph=False))
    assert "photograph" not in judge.asked[0].text
    assert result.settings["must_be_photograph"] is False
    assert "without the photograph clause: not comparable with official numbers" in result.notes


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "x"},
        {"prompt": "x", "tag": "a", "include": []},
        {"prompt": "x", "tag": "a", "include": "cup"},
        {"prompt": "x", "tag": "a", "include": [{"class": "cup"}]},
        {"prompt": "x", "tag": "a", "include": [{"class": "cup", "count": 1}], "exclude": ["cup"]},
    ],
)
def test_a_broken_row_is_one_clear_line(row: dict):
    with pytest.raises(ValueError, match="file, prompt 1: expected a "):
        check_row(row, "file, prompt 1")
