"""What of a reply is a verdict. Nothing is guessed: a reply of another form is none.

json      the whole reply, or the whole of one ``` fence, is one JSON object that has the scores of
          each criterion, 1 to 10, and ``"verdict": "A"`` or ``"B"``; a name twice is no JSON here
letter    the last line is ``VERDICT: A`` or ``VERDICT: B``, and VERDICT stands nowhere else
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, NamedTuple

from uae.bench.ask.api import Reply
from uae.bench.judge.prompts import Form

FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n\s*```", re.DOTALL)
LAST_LINE = re.compile(r"VERDICT: ([AB])")
LEAST, MOST = 1, 10


class Verdict(NamedTuple):
    """Of one comparison, in the judge's own letters."""

    better: str
    """``A`` or ``B``."""
    scores: dict[str, dict[str, float]]
    """By candidate and criterion; empty where only a letter was asked for."""


class NoVerdict(Exception):
    """Why a reply is none."""


def read_verdict(reply: Reply, form: Form, criteria: Collection[str]) -> Verdict:
    """The verdict.

    Raises:
        NoVerdict: for any other reply.
    """
    if reply.text is None:
        raise NoVerdict(f"no reply: {reply.problem}")
    if reply.is_cut:
        raise NoVerdict("cut off by the limit of tokens")
    text = reply.text.strip()
    return _of_last_line(text) if form == "letter" else _of_json(text, criteria)


def _of_last_line(text: str) -> Verdict:
    last = LAST_LINE.fullmatch(text.rsplit("\n", 1)[-1].strip())
    if last is None:
        raise NoVerdict(f"the last line is no verdict: {_end_of(text)}")
    if text.lower().count("verdict") != 1:
        raise NoVerdict("more than one verdict")
    return Verdict(last[1], {})


def _of_json(text: str, criteria: Collection[str]) -> Verdict:
    fenced = FENCE.fullmatch(text)
    try:
        value = json.loads(
            fenced[1] if fenced else text, object_pairs_hook=_without_repeats, parse_constant=_none
        )
    except (ValueError, RecursionError) as error:
        raise NoVerdict(f"no single JSON object: {_end_of(text)}") from error
    if not isinstance(value, dict) or value.keys() != {"scores", "verdict"}:
        raise NoVerdict(f"not the JSON that was asked for: {_end_of(text)}")
    if value["verdict"] not in ("A", "B"):
        raise NoVerdict(f"the verdict is neither A nor B: {str(value['verdict'])[:40]!r}")
    scores = value["scores"]
    if not (isinstance(scores, dict) and scores.keys() == {"A", "B"}):
        raise NoVerdict("scores are not of A and B")
    if not all(_are_scores(each, criteria) for each in scores.values()):
        raise NoVerdict(f"scores are not 1 to 10 for each of {', '.join(criteria)}")
    numbers = {
        side: {name: float(score) for name, score in each.items()} for side, each in scores.items()
    }
    return Verdict(value["verdict"], numbers)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)


def _none(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _are_scores(value: Any, criteria: Collection[str]) -> bool:
    if not isinstance(value, dict) or value.keys() != set(criteria):
        return False
    return all(
        isinstance(score, int | float) and not isinstance(score, bool) and LEAST <= score <= MOST
        for score in value.values()
    )


def _end_of(text: str) -> str:
    return repr(text[-40:])
