"""VLMEvalKit itself: its run on a TSV of the world's questions, and its call of our class."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import uae
from tests.plugins.packages import need, run
from tests.plugins.questions import few_questions
from uae.bench.choice.table import ChoiceTable
from uae.bench.choice.task import prompt_of
from uae.images.read import read_image
from uae.plugins.answers import UNANSWERED
from uae.world.choice import write_world_tsv

CALL = """
import json, sys
from uae.plugins.vlmevalkit import UaeModel
asked = json.loads(sys.argv[1])
model = UaeModel("tiny", max_new_tokens=16)
print("ANSWERS" + json.dumps([model.generate(each) for each in asked]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_calls_our_class(tmp_path: Path):
    need("vlmeval")
    asked = few_questions(tmp_path)
    messages = [[str(q.image), q.text] for q in asked]
    (tmp_path / "film.mp4").touch()  # a value that is no file counts as a text
    film = [{"type": "video", "value": str(tmp_path / "film.mp4")}]
    done = run("-c", CALL, json.dumps([*messages, [*messages[0][:1], *messages[0]], film]))
    (answers,) = (a for a in done.stdout.splitlines() if a.startswith("ANSWERS"))
    images, texts = [read_image(q.image) for q in asked], [q.text for q in asked]
    expected = uae.load_model("tiny").answer(images, texts, max_new_tokens=16)
    assert json.loads(answers.removeprefix("ANSWERS")) == [*expected, UNANSWERED, UNANSWERED]
    assert "got 2 × image;" in done.stderr and "got 1 × video;" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_table_end_to_end(tmp_path: Path):
    """Its prompts are ours, its answers the model's, of the pictures that it writes."""
    package = need("vlmeval")
    script = next(f for f in (package.parent / "run.py", package / "run.py") if f.exists())
    table = tmp_path / "World_Few.tsv"
    write_world_tsv(table, 2)
    config = {
        "model": {"tiny": {"class": "UaeModel", "model": "tiny", "max_new_tokens": 16}},
        "data": {"World_Few": {"class": "CustomMCQDataset", "dataset": "World_Few"}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    run(
        *("-m", "uae.plugins.run_vlmevalkit", script, "--config", tmp_path / "config.json"),
        *("--work-dir", tmp_path / "out", "--judge", "exact_matching"),
        LMUData=tmp_path,
        PRED_FORMAT="tsv",
    )
    (predicted,) = (f for f in (tmp_path / "out").rglob("tiny_World_Few.tsv") if f.is_file())
    with open(predicted) as file:
        answers = {int(r["index"]): r["prediction"] for r in csv.DictReader(file, delimiter="\t")}
    rows = list(ChoiceTable(table).rows())
    assert list(answers) == [row.index for row in rows] == list(range(len(rows)))
    files = [next((tmp_path / "images/World_Few").glob(f"{row.index}.*")) for row in rows]
    images = [read_image(file) for file in files]
    model = uae.load_model("tiny")
    expected = [
        model.answer([image], [prompt_of(row, "options")], max_new_tokens=16)[0]
        for image, row in zip(images, rows, strict=True)
    ]
    assert list(answers.values()) == expected
    assert list((tmp_path / "out").rglob("*acc*"))
