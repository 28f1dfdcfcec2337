"""Win rates, agreement and bias, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from uae.bench.ask.api import Question, Reply
from uae.bench.judge.cost import Usage, counted, estimated, total_cost
from uae.bench.judge.referee import Rulings
from uae.bench.judge.tally import WinRate, agreement, pooled, tally
from uae.bench.judge.verdict import Verdict


def rulings(*letters: str) -> Rulings:
    """Of each pair what was said in the first and in the swapped order; ``-`` for nothing."""
    verdicts, unread = {}, {}
    for pair, both in enumerate(letters):
        for is_swapped, letter in zip((False, True), both, strict=True):
            if letter == "-":
                unread[pair, is_swapped] = "nonsense"
            else:
                scores = {"A": {"f": 8.0}, "B": {"f": 4.0}}
                verdicts[pair, is_swapped] = Verdict(letter, scores)
    return Rulings(verdicts, unread, {})


def test_outcomes_of_both_orders():
    """Swapped, the judge's A is side b."""
    said = rulings("AB", "BA", "AA", "BB", "A-", "-B", "--")
    outcomes = [said.outcome(pair) for pair in range(7)]
    assert outcomes == ["a", "b", "tie", "tie", None, None, None]


def wilson_by_hand(p: float, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 100 * (middle - half), 100 * (middle + half)


def test_tally_by_hand():
    result = tally(rulings("AB", "AB", "BA", "AA", "AA", "A-"), 6)
    assert (result.win.right, result.tie.right, result.loss.right) == (2, 2, 1)
    assert result.unread == 1 and result.win.total == 5
    rate = result.win_rate.to_json()
    assert rate["percent"] == pytest.approx(60)  # 2 wins and 2 halves of 5
    assert (rate["low"], rate["high"]) == pytest.approx(wilson_by_hand(0.6, 5))
    # first-shown is A in each order: AB 1, AB 1, BA 1, AA 2, AA 2 of 10; the unread pair is out
    assert (result.first_chosen.right, result.first_chosen.total) == (7, 10)
    assert result.scores == {"f": (6.0, 6.0)}  # A's 8 is side a once and side b once


def test_nothing_read_is_no_rate():
    result = tally(rulings("--", "A-"), 2)
    assert result.win_rate.to_json() == {"percent": None, "low": None, "high": None, "total": 0}
    assert result.scores == {} and result.unread == 2


def test_pooled_counts_an_image_once():
    rate = pooled([["a", "b", "tie", None, None], ["a", "a", None, "b", None]])
    assert (rate.points, rate.total) == (1 + 0.5 + 0.5 + 0, 4)
    assert WinRate(0.0, 0).to_json()["percent"] is None


def test_kappa_by_hand():
    """Observed 3 of 4; by chance 2/4·3/4 + 1/4·1/4 + 1/4·0 = 7/16."""
    found = agreement(["a", "a", "b", "tie", None], ["a", "a", "b", "a", "b"])
    assert (found.same.right, found.same.total) == (3, 4)
    assert found.kappa == pytest.approx((3 / 4 - 7 / 16) / (1 - 7 / 16))
    assert agreement(["a", "a"], ["a", "a"]).kappa is None
    assert agreement([None], ["a"]).kappa is None and agreement([None], ["a"]).same.percent is None
    assert agreement(["a", "b"], ["b", "a"]).kappa == pytest.approx(-1)


def test_cost_before_and_after():
    replies = [
        Reply("x", None, 1000, 200),
        Reply(None, "busy"),
        Reply("y"),
        Reply("z", None, 500, 0),
    ]
    usage = counted(replies, (2.0, 10.0))
    assert usage == Usage(3, 1500, 200, 1, (2.0, 10.0))
    assert usage.cost == pytest.approx(1500 * 2e-6 + 200 * 10e-6)
    assert counted(replies, None).cost is None
    images = (Path("a.png"), Path("b.png"))
    questions = [Question("x" * 400, images), Question("x" * 800, images)]
    before = estimated(questions, 1, 1000, (1.0, 1.0))
    assert before == Usage(1, 150 + 2000, 200, 0, (1.0, 1.0))
    assert total_cost([usage, Usage(0, 0, 0)]) == usage.cost
    assert total_cost([usage, Usage(1, 1, 1)]) is None
