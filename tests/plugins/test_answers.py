"""What a package asks becomes a question of ours, or a line that says why not."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import uae
from tests.plugins.questions import few_questions
from uae.bench.choice.reading import REFUSALS
from uae.images.read import read_image
from uae.plugins import run_vlmevalkit
from uae.plugins.answers import UNANSWERED, Asked, answer_all, question_of, read_any

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(scope="module")
def tiny():
    return uae.load_model("tiny")


def test_answers_are_those_of_the_model(tiny, tmp_path: Path):
    asked = few_questions(tmp_path)
    parts = [[("image", q.image), ("text", q.text)] for q in asked]
    answers = answer_all(tiny, [Asked("a question", each) for each in parts], 16)
    assert answers == tiny.answer([read_image(q.image) for q in asked], [q.text for q in asked])
    assert sum(a == q.answer for a, q in zip(answers, asked, strict=True)) >= 5


def test_what_cannot_be_asked_is_named_and_the_rest_goes_on(tiny, tmp_path: Path, capsys):
    (q, *_) = few_questions(tmp_path)
    picture, text = ("image", q.image), ("text", q.text)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    stripe = Image.new("RGB", (500, 1))  # the encoder takes none of more than 1 : 200
    asked = {
        "two": [picture, picture, text],
        "none": [text],
        "film": [("video", "film.mp4"), text],
        "both": [picture, ("audio", "a.wav"), text],
        "broken": [("image", tmp_path / "broken.png"), text],
        "gone": [("image", str(tmp_path / "gone.png")), text],
        "stripe": [("image", stripe), text],
        "good": [picture, text],
    }
    answers = answer_all(tiny, [Asked(name, parts) for name, parts in asked.items()], 16)
    assert answers == [UNANSWERED] * 7 + tiny.answer([read_image(q.image)], [q.text])
    lines = capsys.readouterr().err.splitlines()
    problems = [line.removeprefix("left unanswered: ").split(": ", 1) for line in lines]
    assert sorted(name for name, _ in problems) == sorted(set(asked) - {"good"})
    assert dict(problems)["two"] == (
        "expected a question about one image, got 2 × image; let another model answer it"
    )
    assert "got none;" in dict(problems)["none"] and "got 1 × video;" in dict(problems)["film"]
    assert "nothing there" in dict(problems)["gone"] and "200" in dict(problems)["stripe"]


def test_texts_are_lines_of_one_question():
    image = Image.new("RGB", (3, 2), (255, 0, 51))
    parts = [("text", "Look."), ("image", image), ("text", "What is it?")]
    question = question_of(Asked("q", parts))
    assert question.text == "Look.\nWhat is it?"
    assert question.image.shape == (3, 2, 3)
    assert torch.equal(question.image[:, 0, 0], torch.tensor([255, 0, 51]) / 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_pillow_images_are_read_as_files_are(mode: str, tmp_path: Path):
    colors = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    image = Image.fromarray(colors).convert("RGB").convert(mode)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(file)
    assert torch.equal(read_any(image), read_image(file))


def test_a_transparent_pillow_image_lies_on_white():
    assert torch.equal(read_any(Image.new("RGBA", (1, 1), (9, 9, 9, 0))), torch.ones(3, 1, 1))


def test_no_judge_guesses_at_an_unanswered_question():
    assert UNANSWERED in REFUSALS


def test_a_defect_is_no_unanswered_question(tiny, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> list[str]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tiny, "answer", fail)
    asked = Asked("q", [("image", Image.new("RGB", (3, 2))), ("text", "what ?")])
    with pytest.raises(RuntimeError, match="out of memory"):
        answer_all(tiny, [asked], 16)


def test_the_entry_point_leads_to_the_manifest():
    project = tomllib.loads(PROJECT.read_text())["project"]
    (path,) = project["entry-points"]["lmms_eval.models"].values()
    module, _, name = path.partition(":")
    assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize("script", ["", "gone/run.py"])
def test_the_launcher_says_what_it_needs(script: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["run_vlmevalkit", *([script] if script else [])])
    with pytest.raises(SystemExit) as stopped:
        run_vlmevalkit.main()
    assert str(stopped.value) == (
        f"expected VLMEvalKit's run.py, got {script!r}; call {run_vlmevalkit.USAGE}"
    )
