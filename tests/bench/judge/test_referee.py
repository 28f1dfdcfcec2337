"""A thousand requests to a server that misbehaves in every way: no verdict is invented."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.bench.ask.server import Response, Server, failure, said, text_of
from uae.bench.ask.backoff import Backoff
from uae.bench.ask.endpoint import EndpointAsker
from uae.bench.judge.judges import Judge
from uae.bench.judge.pairing import Pair, Side
from uae.bench.judge.prompts import CAPTION_CRITERIA
from uae.bench.judge.referee import Rulings, rule

NUM_PAIRS = 250


def in_form(verdict: Any) -> str:
    scores = {side: dict.fromkeys(CAPTION_CRITERIA, 5) for side in "AB"}
    return json.dumps({"scores": scores, "verdict": verdict})


GOOD = {letter: said(in_form(letter)) for letter in "AB"}
NO_REPLY = (
    failure(429, "slow down"),
    failure(429, "slow down", retry_after="0.001"),
    failure(500, "broken"),
    failure(503, "starting"),
    Response(200, GOOD["A"].body, cut=25),
    Response(200, b'{"choices": [{"message": {"content": "{\\"verdict\\": \\"A\\"'),
    Response(200, b"VERDICT: A"),
)
NO_VERDICT = (
    said("A"),
    said("The first one, clearly."),
    said("Ich halte Kandidat A für besser. Urteil: A"),
    said("候选 B 更好。判断:B"),
    said("El candidato A es mejor.\nVEREDICTO: A"),
    said(in_form("A") + in_form("B")),
    said(in_form("A")[:-1] + ', "verdict": "B"}'),
    said(in_form("A"), "length"),
    said(in_form("A")[:-30]),
    said(in_form("tie")),
    said(in_form("both")),
    said("I'm sorry, I can't compare images."),
    said(""),
)


def judge(server: Server, **options: Any) -> Judge:
    settings = {"concurrency": 16, "retries": 5, "backoff": Backoff(0.0005, 0.002), **options}
    return Judge("judge", EndpointAsker(server.url, "judge", **settings))


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    source = tmp_path / "source.png"
    Image.new("RGB", (8, 8), "red").save(source)
    return [
        Pair(f"{i}", source, Side(f"a{i}", None), Side(f"b{i}", None)) for i in range(NUM_PAIRS)
    ]


def place_of(text: str) -> tuple[int, bool]:
    """Which comparison a request is about, read from its text alone."""
    side, number = re.findall(r'^Caption of A: "([ab])(\d+)"$', text, re.MULTILINE)[0]
    return int(number), side == "b"


def test_a_thousand_requests_and_no_verdict_invented(server: Server, pairs: list[Pair], tmp_path):
    """The server notes each verdict that it gave: the judge has these and no other. Each request
    is answered by a draw of its own; a few are late beyond the time-out."""
    rng, given, num_late = random.Random(0), {}, 0

    def on_request(body: dict[str, Any], times: int) -> Response:
        nonlocal num_late
        place, kind = place_of(text_of(body)), rng.random()
        if kind < 0.25:
            return rng.choice(NO_REPLY)
        if kind < 0.6:
            return rng.choice(NO_VERDICT)
        if kind < 0.61 and num_late < 5:
            num_late += 1
            return Response(200, GOOD["A"].body, late_sec=1.0)
        letter = rng.choice("AB")
        given[place] = letter
        return GOOD[letter]

    server.on_request = on_request
    attempts = 3
    said_by_judge = rule(
        judge(server, timeout_sec=0.7), pairs, tmp_path / "t.jsonl", "json", attempts, 100
    )
    verdicts = {place: verdict.better for place, verdict in said_by_judge.verdicts.items()}
    assert verdicts == given
    everything = {(i, swapped) for i in range(NUM_PAIRS) for swapped in (False, True)}
    assert set(said_by_judge.unread) == everything - set(given)
    assert 10 < len(said_by_judge.unread) < 100 and len(server.bodies) > 1000
    for i in range(NUM_PAIRS):
        letters = given.get((i, False)), given.get((i, True))
        expected = {("A", "B"): "a", ("B", "A"): "b", ("A", "A"): "tie", ("B", "B"): "tie"}
        assert said_by_judge.outcome(i) == expected.get(letters)  # type: ignore


def test_a_server_without_a_verdict_gives_none(server: Server, pairs: list[Pair], tmp_path: Path):
    rng = random.Random(1)
    server.on_request = lambda body, times: rng.choice(NO_VERDICT)
    said_by_judge = rule(judge(server), pairs[:100], tmp_path / "t.jsonl", "json", 2, 100)
    assert said_by_judge.verdicts == {} and len(said_by_judge.unread) == 200
    assert len(server.bodies) == 400  # each is asked twice, no more
    assert {body["seed"] for body in server.bodies} == {0, 1}


def test_each_form_of_a_bad_reply_is_asked_again(server: Server, pairs: list[Pair], tmp_path: Path):
    for number, bad in enumerate((*NO_REPLY, *NO_VERDICT)):
        server.asked.clear()
        server.on_request = lambda body, times, bad=bad: bad if times == 0 else GOOD["B"]
        said_by_judge = rule(judge(server), pairs[:1], tmp_path / f"{number}.jsonl", "json", 2, 100)
        assert {v.better for v in said_by_judge.verdicts.values()} == {"B"}
        assert said_by_judge.unread == {} and said_by_judge.outcome(0) == "tie"


def test_a_second_run_asks_for_what_is_missing_alone(
    server: Server, pairs: list[Pair], tmp_path: Path
):
    """The first is stopped by a wrong key after some replies; what it had is not asked again."""

    def run() -> Rulings:
        return rule(judge(server, concurrency=1), pairs[:10], tmp_path / "t.jsonl", "json", 1, 100)

    server.on_request = lambda body, times: (
        failure(401, "expired") if len(server.bodies) == 8 else GOOD["A"]
    )
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        run()
    server.on_request = lambda body, times: GOOD["A"]
    assert len(run().verdicts) == 20 and len(server.bodies) == 8 + 13
    assert len(run().verdicts) == 20 and len(server.bodies) == 8 + 13
