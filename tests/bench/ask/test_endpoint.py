"""A model behind an endpoint: a real HTTP server that misbehaves, and what is made of it."""

from __future__ import annotations

import asyncio
import base64
import math
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.bench.ask.server import Response, Server, failure, said, text_of
from uae.bench.ask.api import Question, Reply, TokenAsker
from uae.bench.ask.backoff import LONGEST_ASKED_SEC, Backoff, asked_to_wait_sec
from uae.bench.ask.endpoint import EndpointAsker
from uae.data.chat import Pace

QUICK = Backoff(0.001, 0.01)


def asker(server: Server, **options: Any) -> EndpointAsker:
    return EndpointAsker(server.url, "judge", backoff=QUICK, **options)


def ask(answerer: EndpointAsker, *texts: str, **options: Any) -> list[Reply]:
    questions = [Question(text, **options) for text in texts]
    return [reply for _, reply in sorted(answerer.ask(questions, 50))]


def test_what_is_sent_and_what_comes_back(server: Server, tmp_path: Path):
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    images = (tmp_path / "a.png", tmp_path / "b.jpg")
    answerer = asker(server, seed=3)
    assert isinstance(answerer, TokenAsker)
    assert ask(answerer, "Is it?", images=images) == [Reply("yes", None, 100, 10, False)]
    (body,) = server.bodies
    parts = body["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    for part, file in zip(parts, images, strict=False):
        assert base64.b64decode(part["image_url"]["url"].split(",")[1]) == file.read_bytes()
    assert (body["model"], body["temperature"], body["seed"]) == ("judge", 0.0, 3)
    assert body["max_tokens"] == 50
    ask(answerer, "Is it?", attempt=2)
    assert (server.bodies[-1]["temperature"], server.bodies[-1]["seed"]) == (1.0, 5)


def test_replies_have_the_places_of_their_questions(server: Server):
    server.on_request = lambda body, times: said(text_of(body)[::-1])
    texts = [f"question {i}" for i in range(40)]
    assert [reply.text for reply in ask(asker(server), *texts)] == [text[::-1] for text in texts]


PASSING = {
    "429": failure(429, "slow down"),
    "429 with Retry-After": failure(429, "slow down", retry_after="0.01"),
    "429 with milliseconds": failure(429, "slow down", retry_after_ms="5"),
    "500": failure(500, "broken"),
    "503": failure(503, "starting"),
    "time-out": Response(200, said("late").body, late_sec=0.5),
    "cut-off body": Response(200, said("cut").body, cut=30),
    "half of the JSON": Response(200, b'{"choices": [{"mess'),
    "another page": Response(200, b"<html>hello</html>"),
    "error with status 200": Response(200, {"error": {"message": "overloaded", "code": 503}}),
}


@pytest.mark.parametrize("bad", PASSING.values(), ids=PASSING.keys())
def test_what_may_pass_is_asked_again(server: Server, bad: Response):
    server.on_request = lambda body, times: said("good") if times == 2 else bad
    (reply,) = ask(asker(server, timeout_sec=0.2), "Is it?")
    assert reply.text == "good" and len(server.bodies) == 3


@pytest.mark.parametrize("bad", PASSING.values(), ids=PASSING.keys())
def test_after_all_retries_there_is_a_reason(server: Server, bad: Response):
    server.on_request = lambda body, times: bad
    (reply,) = ask(asker(server, timeout_sec=0.1, retries=1), "Is it?")
    assert reply.text is None and reply.problem and "\n" not in reply.problem
    assert len(server.bodies) == 2


def test_permanent_errors_end_all_of_it_at_once(server: Server):
    for status, code, words in (
        (401, None, "OPENAI_API_KEY"),
        (404, "model_not_found", "judge"),
        (429, "insufficient_quota", "account"),
    ):
        server.bodies.clear()
        server.on_request = lambda body, times, s=status, c=code: failure(s, "never", c)
        with pytest.raises(ValueError, match=words):
            ask(asker(server, concurrency=1), *"abcdef")
        assert len(server.bodies) == 1


def test_a_server_that_is_down_stops_after_ten(server: Server):
    server.on_request = lambda body, times: failure(503, "down for ever")
    with pytest.raises(ValueError, match=r"10 questions in a row got no answer.*down for ever"):
        ask(asker(server, retries=0), *(str(i) for i in range(100)))
    assert len(server.bodies) < 30


def test_refusals_are_about_an_image_once_anything_was_answered(server: Server):
    refused = failure(400, "this image is not understood")
    server.on_request = lambda body, times: said("ok") if text_of(body) == "0" else refused
    replies = ask(asker(server, concurrency=1), *(str(i) for i in range(15)))
    assert replies[0].text == "ok" and len(server.bodies) == 15
    assert all("not understood" in (reply.problem or "") for reply in replies[1:])
    with pytest.raises(ValueError, match="10 questions in a row"):
        ask(asker(server, concurrency=1), *(str(i) for i in range(1, 15)))


def test_files_that_cannot_be_read_are_no_fault_of_the_endpoint(server: Server, tmp_path: Path):
    (tmp_path / "bad.png").write_text("no image")
    questions = [Question(str(i), (tmp_path / "bad.png",)) for i in range(12)]
    replies = dict(asker(server).ask([*questions, Question("fine")], 5))
    assert "bad.png" in (replies[0].problem or "") and replies[12].text == "yes"
    assert len(server.bodies) == 1


def test_options_that_a_model_refuses_are_left_away(server: Server):
    def on_request(body: dict[str, Any], times: int) -> Response:
        for name in ("temperature", "seed"):
            if name in body:
                message = f"Unsupported value: '{name}' does not support this with this model."
                return failure(400, message, "unsupported_value")
        if "max_tokens" in body:
            message = "'max_tokens' is not supported: use 'max_completion_tokens' instead."
            return failure(400, message, "unsupported_parameter")
        return said("ok")

    server.on_request = on_request
    answerer = asker(server, concurrency=1)
    assert [reply.text for reply in ask(answerer, "a", "b")] == ["ok", "ok"]
    assert len(server.bodies) == 5 and answerer.not_taken == {"temperature", "seed"}


def test_thoughts_are_no_part_of_a_reply_and_a_cut_is_told(server: Server):
    server.on_request = lambda body, times: said("<think>A or B</think>B", "length")
    assert ask(asker(server), "?") == [Reply("B", None, 100, 10, True)]


# --- pace and waits ------------------------------------------------------------------------------


def test_the_rate_limit_by_a_clock_of_its_own(server: Server):
    """60 a minute: request n starts no sooner than second n, its retry included."""
    now, begun = [0.0], []

    async def sleep(seconds: float) -> None:
        now[0] = max(now[0], now[0] + seconds)
        await asyncio.sleep(0)

    def on_request(body: dict[str, Any], times: int) -> Response:
        begun.append(now[0])
        return failure(500) if text_of(body) == "2" and times == 0 else said("ok")

    server.on_request = on_request
    limited = asker(
        server,
        concurrency=1,
        requests_per_minute=60.0,
        pace=lambda rate: Pace(rate, now=lambda: now[0], sleep=sleep),
    )
    ask(limited, *(str(i) for i in range(5)))
    assert begun == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_waits_double_up_to_a_limit_unless_the_server_asks():
    waits = Backoff(0.5, 3.0)
    assert [waits.wait_sec(n, None) for n in (1, 2, 3, 4, 50)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert waits.wait_sec(1, 7.0) == 7.0 and waits.wait_sec(1, 1e9) == LONGEST_ASKED_SEC


def test_how_long_a_server_asks_to_wait():
    assert asked_to_wait_sec({"retry-after": "3"}) == 3
    assert asked_to_wait_sec({"retry-after": "3", "retry-after-ms": "250"}) == 0.25
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert asked_to_wait_sec({"retry-after": date}) == pytest.approx(60, abs=2)
    assert asked_to_wait_sec({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}) == 0
    for nothing in ({}, {"retry-after": "soon"}, {"retry-after": "-1"}, {"retry-after": "nan"}):
        assert asked_to_wait_sec(nothing) is None


# --- first tokens --------------------------------------------------------------------------------


def top(**probabilities: float) -> dict[str, Any]:
    rows = [{"token": t, "logprob": math.log(p)} for t, p in probabilities.items()]
    return {"content": [{**rows[0], "top_logprobs": rows}]}


def test_first_tokens_of_the_log_probabilities(server: Server):
    server.on_request = lambda body, times: said("Yes", logprobs=top(Yes=0.5, yes=0.25, ele=0.125))
    forms = ["Yes", "yes", " yes", "elephant", "No"]
    ((place, found),) = asker(server).first_tokens([Question("?")], [forms])
    assert place == 0 and found == pytest.approx([0.5, 0.25, 0, 0.125, 0])
    assert server.bodies[0]["logprobs"] is True and server.bodies[0]["top_logprobs"] == 20


@pytest.mark.parametrize("logprobs", [None, {}, {"content": []}, {"content": None}, 5])
def test_an_endpoint_without_log_probabilities_is_named(server: Server, logprobs: Any):
    server.on_request = lambda body, times: said("Yes", logprobs=logprobs)
    with pytest.raises(ValueError, match="expected log-probabilities of model 'judge', got none"):
        list(asker(server).first_tokens([Question("?")], [["Yes"]]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "localhost:8000"}, "expected a URL"),
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"retries": -1}, "retries must be at least 0"),
        ({"requests_per_minute": 0.0}, "requests_per_minute must be more than 0"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        EndpointAsker(**{"url": "http://x/v1", "model": "m", **options})
