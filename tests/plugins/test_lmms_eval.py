"""lmms-eval itself, on a task of its own kind with a few of the world's questions."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import uae
from tests.plugins.packages import need, run
from tests.plugins.questions import Asked, few_questions
from uae.images.read import read_image
from uae.plugins.answers import UNANSWERED

TASK = """
task: world_few
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function few.images
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, do_sample: false, until: ["\\n"]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
READING = """
from PIL import Image
def images(doc):
    return [Image.open(path) for path in doc["images"]]
"""


def write_task(folder: Path, asked: list[Asked]) -> None:
    """The last question has two images."""
    rows = [{"images": [str(q.image)], "question": q.text, "answer": q.answer} for q in asked]
    rows[-1]["images"] = [str(asked[-1].image)] * 2
    data = folder / "few.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "few.py").write_text(READING)
    (folder / "few.yaml").write_text(TASK.format(data=data))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_task_end_to_end(batch_size: int, tmp_path: Path):
    need("lmms_eval")
    asked = few_questions(tmp_path)
    write_task(tmp_path, asked)
    done = run(
        *("-m", "lmms_eval", "--model", "uae", "--model_args", "pretrained=tiny"),
        *("--tasks", "world_few", "--include_path", tmp_path, "--batch_size", str(batch_size)),
        *("--device", "cpu", "--log_samples", "--output_path", tmp_path / "out"),
        HF_HOME=tmp_path / "cache",
    )
    (samples,) = (tmp_path / "out").rglob("*samples_world_few.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    answers = [row["filtered_resps"] for row in rows]
    answers = [each[0] if isinstance(each, list) else each for each in answers]
    images, texts = [read_image(q.image) for q in asked], [q.text for q in asked]
    expected = uae.load_model("tiny").answer(images, texts, max_new_tokens=16)
    assert answers == [*expected[:-1], UNANSWERED]
    assert "left unanswered: world_few, document 5: expected a question about one" in done.stderr
    (results,) = (tmp_path / "out").rglob("*results.json")
    score = json.loads(results.read_text())["results"]["world_few"]["exact_match,none"]
    right = [a == q.answer for a, q in zip(answers, asked, strict=True)]
    assert score == pytest.approx(sum(right) / 6) and sum(right) >= 4


@pytest.fixture
def model() -> Any:
    need("lmms_eval")
    from uae.plugins.lmms_eval import UaeModel

    return UaeModel("tiny", device="cpu")


def test_kinds_of_request_that_are_refused(model: Any):
    with pytest.raises(ValueError, match=r"text \(generate_until\), got likelihoods; leave"):
        model.loglikelihood([])
    with pytest.raises(ValueError, match="single questions, got conversations; leave it out"):
        model.generate_until_multi_round([])


def request(messages: list[dict[str, Any]], settings: dict[str, Any]) -> Any:
    return SimpleNamespace(args=("", lambda doc: messages, settings, 0, "task", "test"))


def test_settings_of_a_task(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (q, *_) = few_questions(tmp_path)
    picture, text = {"type": "image", "url": str(q.image)}, {"type": "text", "text": q.text}
    messages = [{"role": "user", "content": [picture, text]}]
    talk = [*messages, {"role": "assistant", "content": "red"}, *messages]
    model.task_dict = {"task": {"test": [None]}}
    whole = uae.load_model("tiny").answer([read_image(q.image)], [q.text])[0]
    stop = whole[2]
    requests = [
        request(messages, {}),
        request(messages, {"until": [stop], "temperature": 0.7}),
        request(messages, {"until": stop, "max_new_tokens": 16}),
        request(talk, {"max_new_tokens": 16}),
    ]
    before = whole[: whole.index(stop)]
    assert model.generate_until(requests) == [whole, before, before, UNANSWERED]
    said = capsys.readouterr().err
    assert said.count("sampling and beams are not offered: answers are greedy") == 1
    assert "earlier answer" in said
    assert model.generate_until([request(messages, {"max_new_tokens": 1})]) == uae.load_model(
        "tiny"
    ).answer([read_image(q.image)], [q.text], max_new_tokens=1)


@pytest.mark.parametrize("size", ["auto", "0", "-1", "1.5"])
def test_batch_sizes_are_numbers(size: str):
    need("lmms_eval")
    from uae.plugins.lmms_eval import UaeModel

    with pytest.raises(ValueError, match=f"batch_size: expected a number from 1, got {size};"):
        UaeModel("tiny", batch_size=size)
