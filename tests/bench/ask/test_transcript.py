"""Nothing is asked twice: what is kept of replies, and what a kill, a full disk or another setting
does to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.bench.ask.server import Response, Server, failure, said, text_of
from uae.bench.ask.api import Question, Reply
from uae.bench.ask.backoff import Backoff
from uae.bench.ask.endpoint import EndpointAsker
from uae.bench.ask.transcript import ask_all, first_tokens_all, num_missing

ROOT = Path(__file__).parents[3]
QUESTIONS = [Question(f"question {i}") for i in range(6)]


def asker(server: Server, **options: Any) -> EndpointAsker:
    settings = {"concurrency": 1, "backoff": Backoff(0.001, 0.01), "retries": 0, **options}
    return EndpointAsker(server.url, "judge", **settings)


class Echo:
    """Answers with the text itself, and a probability for each form; counts what it is asked."""

    settings = {"model": "echo"}  # noqa: RUF012

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, questions: Sequence[Question], max_new_tokens: int) -> Iterator:
        for place in reversed(range(len(questions))):
            self.asked.append(questions[place].text)
            yield place, Reply(questions[place].text, tokens_in=1, tokens_out=2)

    def first_tokens(self, questions: Sequence[Question], forms: Sequence) -> Iterator:
        for place, each in enumerate(forms):
            self.asked.append(questions[place].text)
            yield place, "no image" if questions[place].text == "bad" else [0.5] * len(each)


def test_a_second_run_asks_nothing(server: Server, tmp_path: Path):
    server.on_request = lambda body, times: said(text_of(body).upper(), "length")
    file = tmp_path / "t.jsonl"
    first = ask_all(asker(server, concurrency=4), QUESTIONS, file, 9)
    assert first == [Reply(q.text.upper(), None, 100, 10, True) for q in QUESTIONS]
    assert num_missing(asker(server), QUESTIONS, file, 9) == 0
    assert ask_all(asker(server), QUESTIONS, file, 9) == first and len(server.bodies) == 6


def test_a_reply_belongs_to_all_that_it_depends_on(tmp_path: Path):
    image = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(image)
    echo, file = Echo(), tmp_path / "t.jsonl"
    question = Question("q", (image,))

    def num_asked(asked: Question, limit: int = 5) -> int:
        before = len(echo.asked)
        ask_all(echo, [asked], file, limit)
        return len(echo.asked) - before

    assert num_asked(question) == 1 and num_asked(question) == 0
    image.rename(tmp_path / "b.png")
    assert num_asked(Question("q", (tmp_path / "b.png",))) == 0  # its bytes count, not its name
    assert num_asked(Question("q", (tmp_path / "b.png",), attempt=1)) == 1
    assert num_asked(Question("q", (tmp_path / "b.png",)), limit=6) == 1
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "b.png")
    assert num_asked(Question("q", (tmp_path / "b.png",))) == 1
    echo.settings = {"model": "another"}
    assert num_asked(Question("q", (tmp_path / "b.png",))) == 1


def test_equal_questions_are_asked_once_and_a_missing_file_costs_no_question(tmp_path: Path):
    echo = Echo()
    gone = Question("gone", (tmp_path / "gone.png",))
    replies = ask_all(echo, [Question("x"), gone, Question("x")], tmp_path / "t.jsonl", 5)
    assert [reply.text for reply in replies] == ["x", None, "x"] and echo.asked == ["x"]
    assert "gone.png" in (replies[1].problem or "")


def test_a_question_without_a_reply_is_asked_again(server: Server, tmp_path: Path):
    server.on_request = lambda body, times: (
        failure(503, "busy") if text_of(body) == "question 2" and not times else said("ok")
    )
    file = tmp_path / "t.jsonl"
    first = ask_all(asker(server), QUESTIONS, file, 9)
    assert [reply.text for reply in first] == ["ok", "ok", None, "ok", "ok", "ok"]
    assert "busy" in (first[2].problem or "") and "busy" in file.read_text()
    second = ask_all(asker(server), QUESTIONS, file, 9)
    assert all(reply.text == "ok" for reply in second) and len(server.bodies) == 7


@pytest.mark.parametrize("num_kept_bytes", [1, 40, -2])
def test_a_torn_last_line_is_dropped(server: Server, tmp_path: Path, num_kept_bytes: int):
    file = tmp_path / "t.jsonl"
    ask_all(asker(server), QUESTIONS, file, 9)
    *whole, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(whole) + last[:num_kept_bytes])
    ask_all(asker(server), QUESTIONS, file, 9)
    assert len(server.bodies) == 7 and len(file.read_bytes().splitlines()) == 6


def test_a_line_that_is_damaged_is_named(server: Server, tmp_path: Path):
    file = tmp_path / "t.jsonl"
    ask_all(asker(server), QUESTIONS[:2], file, 9)
    for damaged in (b"{half\n", b"5\n", b'{"key": "k"}\n', b'{"key": "k", "text": null}\n'):
        good = file.read_bytes()
        file.write_bytes(damaged + good)
        with pytest.raises(ValueError, match=r"t\.jsonl: line 1 is damaged; remove that line"):
            ask_all(asker(server), QUESTIONS[:2], file, 9)
        file.write_bytes(good)
    assert len(server.bodies) == 2


KILLED = """
import os, sys
from pathlib import Path
from uae.bench.ask.api import Question
from uae.bench.ask.endpoint import EndpointAsker
from uae.bench.ask.transcript import ask_all

questions = [Question(f"question {i}") for i in range(6)]
ask_all(EndpointAsker(sys.argv[1], "judge", concurrency=1), questions, Path(sys.argv[2]), 9)
"""


def test_after_a_kill_only_the_rest_is_asked(server: Server, tmp_path: Path):
    """The process is killed by the server while it waits for the fourth answer."""
    running: list[subprocess.Popen] = []

    def on_request(body: dict[str, Any], times: int) -> Response:
        if text_of(body) == "question 3" and times == 0:
            running[0].kill()
        return said(text_of(body))

    server.on_request = on_request
    file = tmp_path / "t.jsonl"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", KILLED, server.url, str(file)]
    running.append(subprocess.Popen(command, env=environment))
    assert running[0].wait(120) == -9
    assert len(file.read_text().splitlines()) == 3
    replies = ask_all(asker(server), QUESTIONS, file, 9)
    assert [reply.text for reply in replies] == [q.text for q in QUESTIONS]
    texts = [text_of(body) for body in server.bodies]
    assert texts == [f"question {i}" for i in (0, 1, 2, 3, 3, 4, 5)]


def test_a_full_disk_stops_in_one_line_with_what_is_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, write = tmp_path / "t.jsonl", os.write

    def write_some(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[: len(data) // 2] if b"question 3" in data else data)

    with monkeypatch.context() as patch:
        patch.setattr("uae.utils.json_lines.os.write", write_some)
        with pytest.raises(OSError, match=r"could not write t\.jsonl.*written before is safe"):
            ask_all(asker(server), QUESTIONS, file, 9)
    assert [json.loads(line)["question"] for line in file.read_text().splitlines()] == [
        "question 0",
        "question 1",
        "question 2",
    ]
    ask_all(asker(server), QUESTIONS, file, 9)
    assert len(server.bodies) == 7


def test_first_tokens_are_kept_too(tmp_path: Path):
    echo, file = Echo(), tmp_path / "t.jsonl"
    questions = [Question("q"), Question("bad")]
    for _ in range(2):
        found = first_tokens_all(echo, questions, [["yes", "Yes"], ["no"]], file)
        assert found == [[0.5, 0.5], "no image"]
    assert echo.asked == ["q", "bad", "bad"]
    first_tokens_all(echo, questions[:1], [["other"]], file)
    assert echo.asked[-1] == "q"
    assert ask_all(echo, questions[:1], file, 5) == [Reply("q", None, 1, 2)]
