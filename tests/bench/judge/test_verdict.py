"""What of a reply is a verdict, and that nothing else is."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from uae.bench.ask.api import Reply
from uae.bench.judge.verdict import NoVerdict, Verdict, read_verdict

CRITERIA = ("fluency", "redrawable")
SCORES = {"A": {"fluency": 7, "redrawable": 3.5}, "B": {"fluency": 1, "redrawable": 10}}
GOOD = json.dumps({"scores": SCORES, "verdict": "B"})


def with_verdict(value: Any) -> str:
    return json.dumps({"scores": SCORES, "verdict": value})


def with_scores(**a: Any) -> str:
    return json.dumps({"scores": {"A": a, "B": SCORES["B"]}, "verdict": "A"})


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"\n {GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```",
        json.dumps(json.loads(GOOD), indent=4),
    ],
)
def test_json_that_is_a_verdict(text: str):
    assert read_verdict(Reply(text), "json", CRITERIA) == Verdict("B", SCORES)


NOT_JSON = {
    "empty": "",
    "nonsense": "colorless green ideas",
    "a letter": "B",
    "a sentence": "B is better.",
    "prose before": f"Here you are:\n{GOOD}",
    "prose after": f"{GOOD}\nHope this helps!",
    "cut": GOOD[:-1],
    "half": GOOD[: len(GOOD) // 2],
    "two objects": f"{GOOD}\n{GOOD}",
    "two fences": f"```json\n{GOOD}\n```\n```json\n{GOOD}\n```",
    "an open fence": f"```json\n{GOOD}",
    "verdict twice": GOOD[:-1] + ', "verdict": "A"}',
    "scores twice": GOOD[:-1] + ', "scores": {}}',
    "a list": f"[{GOOD}]",
    "a text of JSON": json.dumps(GOOD),
    "tie": with_verdict("tie"),
    "both": with_verdict("A and B"),
    "lower case": with_verdict("a"),
    "with a space": with_verdict("A "),
    "full width": with_verdict("Ａ"),
    "Cyrillic": with_verdict("А"),
    "null": with_verdict(None),
    "a number": with_verdict(1),
    "a list of one": with_verdict(["A"]),
    "an object": with_verdict({"A": 1}),
    "no scores": json.dumps({"verdict": "A"}),
    "no verdict": json.dumps({"scores": SCORES}),
    "another name": json.dumps({"scores": SCORES, "winner": "A"}),
    "one name more": GOOD[:-1] + ', "reason": "x"}',
    "German": json.dumps({"Bewertung": SCORES, "Urteil": "B"}),
    "Chinese": "我认为候选 B 更好。",
    "Arabic": "المرشح B أفضل",
    "scores of one": json.dumps({"scores": {"A": SCORES["A"]}, "verdict": "A"}),
    "a criterion missing": with_scores(fluency=3),
    "a criterion more": with_scores(fluency=3, redrawable=3, beauty=3),
    "0": with_scores(fluency=0, redrawable=3),
    "11": with_scores(fluency=11, redrawable=3),
    "true": with_scores(fluency=True, redrawable=3),
    "a text": with_scores(fluency="7", redrawable=3),
    "NaN": with_scores(fluency=float("nan"), redrawable=3),
    "too large": GOOD.replace("3.5", "1e999"),
    "deep": "[" * 100_000,
    "last line": "VERDICT: A",
}


@pytest.mark.parametrize("text", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_json_that_is_none(text: str):
    with pytest.raises(NoVerdict):
        read_verdict(Reply(text), "json", CRITERIA)


def test_no_reply_and_a_cut_one_are_none():
    for form in ("json", "letter"):
        with pytest.raises(NoVerdict, match="no reply: busy"):
            read_verdict(Reply(None, "busy"), form, CRITERIA)
        text = GOOD if form == "json" else "VERDICT: A"
        with pytest.raises(NoVerdict, match="cut off"):
            read_verdict(Reply(text, is_cut=True), form, CRITERIA)


@pytest.mark.parametrize(
    "text", ["VERDICT: A", "A says more, B less.\n\nVERDICT: A\n", "B?\n  VERDICT: A  "]
)
def test_a_last_line_that_is_a_verdict(text: str):
    assert read_verdict(Reply(text), "letter", CRITERIA) == Verdict("A", {})


@pytest.mark.parametrize(
    "text",
    [
        *("", "A", "I choose A", "VERDICT: C", "VERDICT: a", "VERDICT: A.", "**VERDICT: A**"),
        *(
            "VERDICT: A or B",
            "VERDICT: AB",
            "VERDICT: А",
            "VERDICT：A",
            "Verdict: A",
            "VEREDICTO: A",
        ),
        "VERDICT: A\nVERDICT: B",
        "VERDICT: A\nVERDICT: A",
        "My verdict is B.\nVERDICT: A",
        "VERDICT: A\nbut I may be wrong",
        "Urteil: A\n判断：B",
        GOOD,
    ],
)
def test_a_last_line_that_is_none(text: str):
    with pytest.raises(NoVerdict):
        read_verdict(Reply(text), "letter", CRITERIA)


def test_no_damaged_reply_gets_another_verdict():
    """Any character removed, doubled or changed: the verdict stays what it was, or is none."""
    rng = random.Random(0)
    letters = 'AB{}[]",:0123456789 abcverdict\n'
    num_none = 0
    for _ in range(3000):
        place = rng.randrange(len(GOOD))
        change = rng.choice(("", GOOD[place] * 2, rng.choice(letters)))
        text = GOOD[:place] + change + GOOD[place + 1 :]
        is_of_the_verdict = GOOD[place : place + 3] == 'B"}' and change == "A"
        try:
            verdict = read_verdict(Reply(text), "json", CRITERIA)
        except NoVerdict:
            num_none += 1
            continue
        assert verdict.better == ("A" if is_of_the_verdict else "B"), text
    assert num_none > 1500
