"""Prompts that are rewritten before they are painted, by a real server that misbehaves."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.bench.ask.server import Response, Server, failure, said, text_of
from tests.bench.dpg.test_rules import write_csv
from tests.world.perfect import Perfect
from uae.bench.ask.api import Question, Reply
from uae.bench.ask.build import AskerOptions
from uae.bench.ask.local import LocalAsker
from uae.bench.dpg.benchmark import DpgBench
from uae.bench.generate import PromptImages
from uae.bench.geneval.benchmark import GenEvalBench
from uae.bench.geneval2.benchmark import GenEval2
from uae.bench.genevalpp.benchmark import GenEvalPlusPlus
from uae.bench.rewrite.options import INSTRUCTION, RewriterOptions
from uae.bench.rewrite.prompts import Rewrite, is_named, lost_objects, rewrite_of
from uae.bench.rewrite.record import read_rewrite, rewriting_of
from uae.bench.run import answer_items, run_benchmark
from uae.commands.generate import main
from uae.types import Reconstructions

PROMPTS = ("a dog", "a bus", "a cup", "two knives")


class Painter(Perfect):
    """Paints noise, and remembers what it was asked for."""

    origin = ()

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def generate(self, texts, settings, *, group_size=1, seed=0, step=0):
        self.texts += texts
        generator = torch.Generator().manual_seed(step)
        number = group_size * len(texts)
        cut = {"image/text_cut_frac": float("very long" in texts[0])}
        images = torch.rand(number, 3, 48, 48, generator=generator)
        return Reconstructions(images, group_size, metrics=cut)


@pytest.fixture
def server(server: Server) -> Server:
    server.on_request = lambda body, times: said(f"A fine picture of {prompt_of(body)}.")
    return server


def prompt_of(body: dict[str, Any]) -> str:
    instruction, prompt = text_of(body).split("\n\n")
    assert instruction == INSTRUCTION
    return prompt


def by(server: Server, model: str = "writer", **options: Any) -> RewriterOptions:
    return RewriterOptions(model, server.url, retries=0, **options)


def images_of(folder: Path, server: Server, **options: Any) -> PromptImages:
    file = folder / "prompts.jsonl"
    classes = ("dog", "bus", "cup", "knife")
    rows = [
        {"tag": "t", "include": [{"class": name, "count": 1}], "prompt": prompt}
        for name, prompt in zip(classes, PROMPTS, strict=True)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    usual = {"rewriter": by(server), "images_per_prompt": 1, "out": folder / "images"}
    return PromptImages(file, **{**usual, **options})


def paint(task: PromptImages) -> list[str]:
    """What was painted now."""
    painter = Painter()
    answer_items(task, lambda source: painter)
    return painter.texts


# --- objects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("dog", "Two DOGS run", True),
        ("dog", "a hotdog, dogged", False),
        ("bus", "buses", True),
        ("knife", "knives", True),
        ("person", "people at a table", True),
        ("person", "a man at a table", False),  # a synonym
        ("computer mouse", "some computer mice", True),
        ("computer mouse", "a mouse beside a computer", False),
        ("tennis racket", "a tennis-racket", True),
        ("berry", "berries", True),
        ("cell phone (old)", "a cell phone old", False),
        ("tv", "a smart TV", True),
    ],
)
def test_an_object_is_named_by_its_word(name: str, text: str, expected: bool):
    assert is_named(name, text) == expected


def test_only_objects_that_the_prompt_names_can_be_lost():
    include = [{"class": "dog"}, {"class": "tv"}, {"class": 3}, "x", {"class": "dog"}]
    row = {"prompt": "a dog and a television", "include": include}
    assert lost_objects(row, "a puppy") == ["dog"]
    assert lost_objects(row, "a dog") == []
    for odd in ({}, {"include": 5}, {"include": []}, {"include": [{"class": " "}]}):
        assert lost_objects({"prompt": "a dog", **odd}, "a cat") is None


def test_no_reply_is_repaired():
    row = {"prompt": "a dog", "include": [{"class": "dog"}]}
    assert rewrite_of(row, Reply(' "A dog."\n')) == Rewrite("a dog", '"A dog."', lost=[])
    assert rewrite_of(row, Reply(" \n")) == Rewrite("a dog", "a dog", is_empty=True)
    cut = Rewrite("a dog", "A cat on", is_cut=True, lost=["dog"])
    assert rewrite_of(row, Reply("A cat on", is_cut=True)) == cut
    gone = rewrite_of(row, Reply(None, "timed out"))
    assert gone.problem == "could not be rewritten: timed out"


# --- painting ------------------------------------------------------------------------------------


def test_the_rewrite_is_painted_and_the_prompt_is_kept(tmp_path: Path, server: Server):
    task = images_of(tmp_path, server)
    assert paint(task) == [f"A fine picture of {prompt}." for prompt in PROMPTS]
    row = json.loads((task.out / "00001/metadata.jsonl").read_text())
    assert row["prompt"] == "a bus"
    rewrite, rewriter = read_rewrite(task.out / "00001")
    assert rewrite == Rewrite("a bus", "A fine picture of a bus.", lost=[])
    assert (rewriter["model"], rewriter["instruction"]) == ("writer", INSTRUCTION)
    assert server.bodies[0]["max_tokens"] == 256 and server.bodies[0]["temperature"] == 0
    assert paint(task) == [] and len(server.bodies) == 4


def test_without_a_rewriter_nothing_is_asked_or_recorded(tmp_path: Path, server: Server):
    task = images_of(tmp_path, server, rewriter=RewriterOptions())
    assert paint(task) == list(PROMPTS)
    assert not list(task.out.rglob("rewrite*")) and not server.bodies
    assert "rewriter" not in json.loads(task.record.read_text())
    assert rewriting_of(task.out.glob("*/samples/*.png")) is None


def test_what_was_stopped_goes_on_with_the_same_rewrites(tmp_path: Path, server: Server):
    task = images_of(tmp_path, server)
    paint(task)
    (task.out / "00001/metadata.jsonl").unlink()  # as a kill leaves it
    (task.out / "00002/rewrite.json").unlink()
    server.on_request = lambda body, times: said("something else")
    again = paint(images_of(tmp_path, server))
    assert again == ["A fine picture of a bus.", "A fine picture of a cup."]
    assert len(server.bodies) == 4


def test_another_rewriter_is_refused_in_the_same_folder(tmp_path: Path, server: Server):
    task = images_of(tmp_path, server)
    paint(task)
    others = {
        "rewriter.model": by(server, "other"),
        "rewriter.instruction": by(server, instruction="Shout."),
        "rewriter.max_new_tokens": by(server, max_new_tokens=9),
        "rewriter.url": RewriterOptions(),
    }
    for name, rewriter in others.items():
        with pytest.raises(ValueError, match=rf"other settings:(.|\n)*{name}"):
            paint(replace(task, rewriter=rewriter))
    plain = images_of(tmp_path, server, rewriter=RewriterOptions(), out=tmp_path / "plain")
    paint(plain)
    with pytest.raises(ValueError, match=r"rewriter\.model: was not set, now 'writer'"):
        paint(replace(plain, rewriter=by(server)))


def test_a_server_that_misbehaves(tmp_path: Path, server: Server):
    """Each fault once: what is not answered is left out, and asked about again alone."""
    answers: dict[str, Response] = {
        "a dog": said(" \n"),
        "a bus": said("A very long bus", "length"),
        "a cup": failure(500, "down"),
        "two knives": said("<think>forks?</think>Two shiny forks."),
    }
    server.on_request = lambda body, times: answers[prompt_of(body)]
    task, painter = images_of(tmp_path, server), Painter()
    result = answer_items(task, lambda source: painter)
    assert painter.texts == ["a dog", "A very long bus", "Two shiny forks."]
    assert [item.place for item in result.left_out] == [2]
    (reason,) = result.left_out.values()
    assert reason.startswith("could not be rewritten") and "down" in reason
    rewriting = rewriting_of(task.out.glob("*/samples/*.png"))
    assert rewriting is not None
    numbers = rewriting.to_json()
    (by_whom,) = numbers.pop("rewritten_by")
    assert by_whom["url"] == server.url
    assert numbers == {
        "prompts": 3,
        "rewritten": 3,
        "empty": ["a dog"],
        "cut": ["a bus"],
        "too_long": ["a bus"],
        "objects_known": 2,
        "objects_lost": {"two knives": ["knife"]},
        "unreadable": [],
    }
    assert "1 of 2 rewrites lost objects: knife (two knives)" in rewriting.lines()[-1]
    answers["a cup"] = said("A cup.")
    assert paint(images_of(tmp_path, server)) == ["A cup."] and len(server.bodies) == 5


@pytest.mark.parametrize(
    "fault",
    [
        failure(429, "slow down"),
        failure(503, "busy"),
        Response(200, {"choices": []}),
        Response(200, b"<html>"),
        Response(200, said("A cup.").body, cut=20),
        said("A cup.")._replace(late_sec=1.0),
    ],
)
def test_a_fault_that_passes_changes_no_rewrite(tmp_path: Path, server: Server, fault: Response):
    fine = server.on_request
    server.on_request = lambda body, times: fault if not times else fine(body, times)
    rewriter = replace(by(server), retries=1, timeout_sec=0.5)
    assert paint(images_of(tmp_path, server, rewriter=rewriter)) == [
        f"A fine picture of {prompt}." for prompt in PROMPTS
    ]


def test_a_wrong_key_ends_in_one_line(tmp_path: Path, server: Server):
    server.on_request = lambda body, times: failure(401, "no such key")
    with pytest.raises(ValueError, match="no such key"):
        paint(images_of(tmp_path, server))


def test_a_model_on_this_machine_rewrites(tmp_path: Path, server: Server):
    """The same checkpoint may paint: Janus answers a text alone."""
    from tests.models.real_layouts import write_janus

    folder = write_janus(tmp_path / "janus")
    rewriter = RewriterOptions(str(folder), instruction="Say", max_new_tokens=4)
    task = images_of(tmp_path, server, rewriter=rewriter)
    texts = paint(task)
    asker = LocalAsker(str(folder))
    replies = dict(asker.ask([Question(f"Say\n\n{prompt}") for prompt in PROMPTS], 4))
    expected = [(replies[place].text or "").strip() for place in range(4)]
    assert texts == [text or prompt for text, prompt in zip(expected, PROMPTS, strict=True)]
    assert any(expected) and not server.bodies
    assert read_rewrite(task.out / "00000").rewriter["weights"] == asker.settings["weights"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "tiny"}, "answers a text without an image, which a model of uae does not"),
        ({"endpoint": "http://x/v1"}, "expected --rewriter.model, the model's name"),
        ({"model": "m", "max_new_tokens": 0}, "max-new-tokens must be at least 1, got 0"),
    ],
)
def test_a_rewriter_that_cannot_be_is_refused_before_work(
    tmp_path: Path, server: Server, options: dict, message: str
):
    with pytest.raises(ValueError, match=message):
        images_of(tmp_path, server, rewriter=RewriterOptions(**options)).items()


# --- results -------------------------------------------------------------------------------------


def test_the_command_and_a_result_of_its_pictures_say_so(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture
):
    file = images_of(tmp_path, server).prompts
    out = str(tmp_path / "images")
    small = ["--model", "tiny", "--images-per-prompt", "1", "--decoding.num-steps", "1"]
    named = ["--rewriter.model", "writer", "--rewriter.endpoint", server.url]
    main([str(file), "--out", out, *small, *named])
    line = "prompts rewritten by writer: 4 of 4; not comparable with prompts as they are"
    assert line in capsys.readouterr().out
    (tmp_path / "images/00003/rewrite.json").write_text("{")
    server.on_request = lambda body, times: said('{"correct": true, "reason": "r"}')
    benchmark = GenEvalPlusPlus(
        images=tmp_path / "images",
        prompts=file,
        answerer=AskerOptions("judge", server.url),
        out=tmp_path / "r.json",
    )
    result = run_benchmark(benchmark, lambda source: None, lambda *shown: None)
    written = json.loads((tmp_path / "r.json").read_text())["rewriting"]
    assert (written["prompts"], written["rewritten"]) == (4, 3)
    assert written["rewritten_by"][0]["model"] == "writer"
    assert written["unreadable"][0].startswith("00003/rewrite.json: expected JSON, got none")
    text = printed(benchmark, result)
    assert "prompts rewritten by writer: 3 of 4" in text and "00003/rewrite.json" in text


def test_dpg_and_geneval2_say_so(tmp_path: Path, server: Server):
    """Their metadata name no objects, so none is looked for."""
    question = {"proposition_id": 1, "dependency": "0", "tuple": "entity", "question": "a dog?"}
    table = write_csv(tmp_path / "d.csv", [{"item_id": "a", "questions": [question]}])
    row = {"prompt": "a dog", "vqa_list": [["Is it a dog?", "Yes"]], "skills": ["object"]}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    server.on_request = lambda body, times: said("yes" if body["model"] == "judge" else "A cat.")
    options: dict[str, Any] = {
        "rewriter": by(server),
        "answerer": AskerOptions("judge", server.url),
        "out": tmp_path / "r.json",
    }
    for benchmark in (
        DpgBench(questions=table, **options),
        GenEval2(prompts=tmp_path / "p.jsonl", hard=True, **options),
    ):
        painter = Painter()
        named = replace(benchmark, out=tmp_path / f"{type(benchmark).__name__}.json")
        result = run_benchmark(named, lambda source, painter=painter: painter, lambda *shown: None)
        written = json.loads(named.out.read_text())
        assert painter.texts == ["A cat."]
        assert (written["rewriting"]["rewritten"], written["rewriting"]["objects_known"]) == (1, 0)
        assert "prompts rewritten by writer: 1 of 1" in printed(named, result)


def printed(benchmark: Any, result: Any) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(benchmark.table(result))
    return console.export_text()


def test_geneval_says_so_and_its_rows_keep_the_prompts(tmp_path: Path, server: Server):
    options: dict[str, Any] = {"prompts": "world", "detector": "world", "prompts_per_tag": 1}
    benchmark = GenEvalBench(rewriter=by(server), out=tmp_path / "g.json", **options)
    painter = Painter()
    result = run_benchmark(benchmark, lambda source: painter, lambda *shown: None)
    rows = [json.loads(line) for line in (tmp_path / "g_rows.jsonl").read_text().splitlines()]
    assert painter.texts == [f"A fine picture of {row['prompt']}." for row in rows]
    written = json.loads((tmp_path / "g.json").read_text())
    assert written["rewriting"]["rewritten"] == len(rows) == 6
    assert written["model"]["rewriter"]["model"] == "writer"
    assert "prompts rewritten by writer: 6 of 6" in printed(benchmark, result)
    plain = GenEvalBench(out=tmp_path / "p.json", **options)
    result = run_benchmark(plain, lambda source: painter, lambda *shown: None)
    assert "rewriting" not in json.loads((tmp_path / "p.json").read_text())
    assert "rewritten" not in printed(plain, result)


def test_a_prompt_that_cannot_be_rewritten_is_named_in_the_result(tmp_path: Path, server: Server):
    file = images_of(tmp_path, server).prompts
    verdict, fine = said('{"correct": true, "reason": "r"}'), server.on_request

    def on_request(body: dict[str, Any], times: int) -> Response:
        if body["model"] == "judge":
            return verdict
        return failure(500, "down") if "a cup" in text_of(body) else fine(body, times)

    server.on_request = on_request
    benchmark = GenEvalPlusPlus(
        prompts=file,
        rewriter=by(server),
        answerer=AskerOptions("judge", server.url),
        out=tmp_path / "r.json",
    )
    result: Any = run_benchmark(benchmark, lambda source: Painter(), lambda *shown: None)
    assert result.partial and result.unscored.keys() == {"3"}
    assert "could not be rewritten" in result.unscored["3"] and "down" in result.unscored["3"]
    assert result.settings["rewriter"]["model"] == "writer"


@pytest.mark.parametrize("benchmark", [GenEvalPlusPlus, GenEvalBench])
def test_pictures_made_elsewhere_cannot_be_rewritten(tmp_path: Path, benchmark: Any):
    rewriter = RewriterOptions("m", "http://x/v1")
    with pytest.raises(ValueError, match=r"--rewriter with --model.*got --images"):
        benchmark(images=tmp_path, rewriter=rewriter, out=tmp_path / "r.json").check()
