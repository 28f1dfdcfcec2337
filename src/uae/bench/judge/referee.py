"""Both orders of each comparison, asked again where there is no verdict.

A candidate wins that is preferred in both orders. A judge that follows the order says nothing about
the candidates: split is a tie. A comparison without a verdict in both orders is unread: it counts
for neither side and is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from uae.bench.ask.api import Reply
from uae.bench.ask.transcript import ask_all, keys_of
from uae.bench.judge.judges import Judge
from uae.bench.judge.pairing import Pair
from uae.bench.judge.prompts import Form, criteria_of, question_about
from uae.bench.judge.verdict import NoVerdict, Verdict, read_verdict

Outcome = Literal["a", "b", "tie"]
Place = tuple[int, bool]  # of the pair, and whether its sides are swapped


@dataclass(frozen=True)
class Rulings:
    """What one judge said of all comparisons."""

    verdicts: dict[Place, Verdict]
    unread: dict[Place, str]
    """Why there is no verdict."""
    replies: dict[str, Reply]
    """All of them, those that were no verdict too, by the transcript's keys: equal questions, as
    both orders of equal candidates are, share one."""

    def outcome(self, pair: int) -> Outcome | None:
        """None without both verdicts."""
        one, other = self._winner(pair, False), self._winner(pair, True)
        if one is None or other is None:
            return None
        return one if one == other else "tie"

    def _winner(self, pair: int, is_swapped: bool) -> Outcome | None:
        verdict = self.verdicts.get((pair, is_swapped))
        if verdict is None:
            return None
        return "a" if (verdict.better == "A") != is_swapped else "b"

    def scores(self, pair: int) -> list[tuple[dict[str, float], dict[str, float]]]:
        """Of side a and of side b, in each order that was scored."""
        sides = []
        for is_swapped in (False, True):
            verdict = self.verdicts.get((pair, is_swapped))
            if verdict is not None and verdict.scores:
                a, b = ("B", "A") if is_swapped else ("A", "B")
                sides.append((verdict.scores[a], verdict.scores[b]))
        return sides


def rule(
    judge: Judge,
    pairs: Sequence[Pair],
    transcript: Path,
    form: Form,
    attempts: int,
    max_new_tokens: int,
) -> Rulings:
    """Ask until there is a verdict, or no attempt is left."""
    rulings = Rulings({}, {}, {})
    still_open: list[Place] = list(product(range(len(pairs)), (False, True)))
    for attempt in range(attempts):
        questions = [question_about(pairs[i], swapped, form, attempt) for i, swapped in still_open]
        replies = ask_all(judge.asker, questions, transcript, max_new_tokens)
        keys = keys_of(judge.asker, questions, max_new_tokens)
        replied = zip(keys, replies, strict=True)
        rulings.replies.update({key: reply for key, reply in replied if isinstance(key, str)})
        for place, reply in zip(still_open, replies, strict=True):
            _note(rulings, place, reply, form, pairs[place[0]])
        still_open = [place for place in still_open if place not in rulings.verdicts]
        if not still_open:
            break
    return rulings


def _note(rulings: Rulings, place: Place, reply: Reply, form: Form, pair: Pair) -> None:
    criteria = criteria_of(pair.a.caption is not None, pair.a.image is not None)
    try:
        rulings.verdicts[place] = read_verdict(reply, form, criteria)
        rulings.unread.pop(place, None)
    except NoVerdict as problem:
        rulings.unread[place] = str(problem)
