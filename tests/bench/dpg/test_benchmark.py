"""DPG-Bench from pictures to numbers, with an answerer that looks at colours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.bench.dpg.test_rules import write_csv
from tests.bench.oracles import oracle
from tests.bench.scripted import ScriptedAsker, paint
from tests.rl.tiny_run import build_model
from uae.bench.api import Benchmark
from uae.bench.dpg.benchmark import DpgBench
from uae.bench.run import run_benchmark
from uae.types import Reconstructions

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
NAMES = {RED: "red", GREEN: "green", BLUE: "blue", WHITE: "white"}


def questions_of(*colors: str) -> list[dict]:
    """Is it this colour, or that? The second depends on the first."""
    return [
        {
            "proposition_id": n,
            "dependency": str(n - 1),
            "tuple": f"{c} - x (y)",
            "question": f"{c}?",
        }
        for n, c in enumerate(colors, 1)
    ]


def sees_colors(question, color) -> str:
    return "yes" if question.text.split("?")[0] == NAMES.get(color, "none") else "no"


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    items = [
        {"item_id": name, "questions": questions_of("red", "green")} for name in ("a", "b", "c")
    ]
    return write_csv(tmp_path / "dpg.csv", items)


def run(benchmark: DpgBench):
    assert isinstance(benchmark, Benchmark)
    return run_benchmark(benchmark, lambda source: None, lambda *shown: None)


def bench(csv_file: Path, **options) -> DpgBench:
    root = csv_file.parent
    asker = options.pop("asker", None) or ScriptedAsker(sees_colors)
    defaults = {"images": root / "pictures", "num_bootstrap": 50, "out": root / "out/dpg.json"}
    return DpgBench(questions=csv_file, answerer=asker, **(defaults | options))


def grid(path: Path, *colors: tuple[int, ...]) -> None:
    """Top left, top right, bottom left, bottom right, of 4 pixels each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (8, 8))
    for color, corner in zip(colors, ((0, 0), (4, 0), (0, 4), (4, 4)), strict=True):
        image.paste(color, (*corner, corner[0] + 4, corner[1] + 4))
    image.save(path)


def test_crops_of_a_grid_are_asked_about_one_by_one(csv_file: Path, tmp_path: Path):
    grid(tmp_path / "pictures/a.png", RED, GREEN, BLUE, RED)
    grid(tmp_path / "pictures/b.v2.png", RED, RED, RED, GREEN)
    grid(tmp_path / "pictures/c.png", BLUE, BLUE, BLUE, BLUE)
    result = run(bench(csv_file, crops=4))
    scores = {name: row["crops"] for name, row in result.images.items()}
    # green alone never counts: it depends on red
    assert scores == {"a": [0.5, 0, 0, 0.5], "b": [0.5, 0.5, 0.5, 0], "c": [0, 0, 0, 0]}
    assert result.scores["overall"]["overall"].value == pytest.approx(100 * 2.5 / 4 / 3)
    # categories pool questions as they were answered
    broad = {name: score.value for name, score in result.scores["category, level 1"].items()}
    assert broad == pytest.approx({"red": 100 * 5 / 12, "green": 100 * 2 / 12})
    assert not result.partial
    two = run(bench(csv_file, crops=2, out=tmp_path / "two.json"))
    assert two.images["b"]["crops"] == [0.5, 0.5]
    last = run(bench(csv_file, crops=4, last_crop_only=True, out=tmp_path / "last.json"))
    broad = {name: score.value for name, score in last.scores["category, level 1"].items()}
    assert broad == pytest.approx({"red": 100 / 3, "green": 100 / 3})
    assert last.scores["overall"] == result.scores["overall"]
    assert "as officially, categories count the last crop alone" in last.notes


def test_separate_pictures_of_an_item_are_its_crops(csv_file: Path, tmp_path: Path):
    for name in "abc":
        paint(tmp_path / f"pictures/{name}.0.png", RED)
    paint(tmp_path / "pictures/a.1.png", BLUE)
    result = run(bench(csv_file))
    assert result.images["a"]["crops"] == [0.5, 0]
    assert result.scores["overall"]["overall"].value == pytest.approx(100 * (0.25 + 1) / 3)


def test_missing_extra_corrupt_and_duplicate_pictures(csv_file: Path, tmp_path: Path):
    paint(tmp_path / "pictures/a.png", RED)
    paint(tmp_path / "pictures/a.copy.png", RED)
    (tmp_path / "pictures/b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    paint(tmp_path / "pictures/z.png", RED)
    result = run(bench(csv_file))
    assert result.scores["overall"]["overall"].value == 50.0
    assert result.images["a"]["crops"] == [0.5]
    assert result.unscored.keys() == {"b", "c"} and result.unscored["c"] == "no picture"
    assert result.partial
    assert "passed over z.png: no prompt is called z" in result.remarks
    assert any("counted once" in remark for remark in result.remarks)
    silent = run(bench(csv_file, drop_failed=True, out=tmp_path / "silent.json"))
    assert silent.scores == result.scores and not silent.partial
    assert "as officially, 2 items without a score are dropped" in silent.notes


def test_nothing_to_score_is_one_clear_line(csv_file: Path, tmp_path: Path):
    paint(tmp_path / "pictures/z.png", RED)
    with pytest.raises(ValueError, match="picture of one of 3 prompts, got none: passed over z"):
        run(bench(csv_file))
    with pytest.raises(ValueError, match="found nothing there"):
        run(bench(csv_file, images=tmp_path / "nowhere"))
    for options, words in (({"crops": 5}, "from 1 to 4"), ({"resolution": 0}, "at least 1")):
        with pytest.raises(ValueError, match=words):
            run(bench(csv_file, **options))


def test_answers_are_kept_and_an_unanswered_question_drops_its_item(csv_file: Path, tmp_path: Path):
    for name, color in zip("abc", (RED, GREEN, BLUE), strict=True):
        paint(tmp_path / f"pictures/{name}.png", color)
    mute = ScriptedAsker(lambda q, color: None if color == BLUE else sees_colors(q, color))
    first = run(bench(csv_file, asker=mute))
    assert first.unscored == {"c": "2 questions about crop 1 have no answer"} and first.partial
    assert len(mute.asked) == 6
    again = ScriptedAsker(sees_colors)
    second = run(bench(csv_file, asker=again))
    assert len(again.asked) == 2  # of the blue one alone
    assert second.scores["overall"]["overall"].value == pytest.approx(100 * 0.5 / 3)
    assert json.loads((tmp_path / "out/dpg.json").read_text())["answerer"] == {"model": "scripted"}


def test_nearly_yes_counts_as_no_and_is_told(csv_file: Path, tmp_path: Path):
    for name, color in zip("abc", (RED, GREEN, BLUE), strict=True):
        paint(tmp_path / f"pictures/{name}.png", color)
    loud = ScriptedAsker(lambda q, color: f"{sees_colors(q, color).capitalize()}.")
    strict = run(bench(csv_file, asker=loud))
    assert strict.scores["overall"]["overall"].value == 0
    assert any(note.startswith('2 of 6 answers are "yes" but for case') for note in strict.notes)
    lenient = run(bench(csv_file, asker=loud, lenient=True))
    assert lenient.scores["overall"]["overall"].value == pytest.approx(100 * 0.5 / 3)
    assert lenient.notes == []


@pytest.mark.parametrize("kept", ["official", "official_if_first_row_kept"])
def test_the_official_runs_from_files(kept: str, tmp_path: Path):
    """Every item is a picture whose cells say by their colour which crop they are."""
    for official in oracle("dpg_scores.json.gz")["runs"]:
        given, root = official["input"]["items"], tmp_path / f"{official['id']}"
        answers = {}
        for place, item in enumerate(given):
            colors = [(place, crop, 0) for crop in range(4)]
            grid(root / "pictures" / item["file"], *colors)
            for color, crop in zip(colors, item["answers"], strict=False):
                for question, answer in zip(item["questions"], crop, strict=True):
                    answers[color, question["question"]] = answer
        listed = [item for item in given if item.get("in_csv", True)]
        asker = ScriptedAsker(lambda q, color, answers=answers: answers[color, q.text])
        result = run(
            bench(
                write_csv(root / "dpg.csv", listed),
                asker=asker,
                crops=official["pic_num"],
                suffix="",
                lose_first_row=kept == "official",
                drop_failed=True,
                last_crop_only=True,
            )
        )
        expected = official[kept]
        overall = result.scores["overall"]["overall"].value
        assert overall == pytest.approx(expected["overall"], abs=1e-9)
        for level in (1, 2):
            scores = result.scores[f"category, level {level}"]
            found = {name: score.value for name, score in scores.items()}
            assert found == pytest.approx(expected[f"level{level}"], abs=1e-9)
        scored = {item["file"] for item in given if item["item_id"] in result.images}
        assert scored == {name for name, image in expected["images"].items() if image}


def test_a_model_paints_each_item_once(csv_file: Path, tmp_path: Path, monkeypatch):
    painted = []
    model = build_model()

    def generate(texts, settings, **draws):
        painted.append(texts[0])
        image = torch.zeros(1, 3, 4, 4)
        image[:, 0] = 1  # red
        return Reconstructions(image.repeat(draws["group_size"], 1, 1, 1), draws["group_size"])

    monkeypatch.setattr(model, "generate", generate)
    for _ in range(2):
        benchmark = bench(csv_file, images=None, images_per_prompt=2)
        result = run_benchmark(benchmark, lambda source: model, lambda *shown: None)
    assert painted == ["a picture of a", "a picture of b", "a picture of c"]
    assert result.scores["overall"]["overall"].value == 50.0
    assert result.settings["model"] == "tiny" and not result.partial
    assert result.images["a"]["crops"] == [0.5, 0.5]  # painted alike, and both counted
    # the same pictures, from their folder and in another order of the file
    reversed_csv = write_csv(
        tmp_path / "reversed.csv",
        [{"item_id": name, "questions": questions_of("red", "green")} for name in "cba"],
    )
    again = run(bench(reversed_csv, images=tmp_path / "out/dpg_images", out=tmp_path / "r.json"))
    assert list(again.images) == ["c", "b", "a"]
    assert {row["score"] for row in again.images.values()} == {0.5}
    assert len(again.remarks) == 3 and "counted once" in again.remarks[0]
