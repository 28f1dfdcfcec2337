"""Numbers of outcomes: win rates, how far judges agree, and how far they follow the order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from uae.bench.judge.referee import Outcome, Rulings
from uae.bench.result import Share, wilson

POINTS = {"a": 1.0, "tie": 0.5, "b": 0.0}
Outcomes = Sequence[Outcome | None]


@dataclass(frozen=True)
class WinRate:
    """Of side a, a tie counting half."""

    points: float
    total: int

    def to_json(self) -> dict[str, Any]:
        low, high = wilson(self.points, self.total) or (None, None)
        percent = 100 * self.points / self.total if self.total else None
        return {"percent": percent, "low": low, "high": high, "total": self.total}


@dataclass(frozen=True)
class Tally:
    """Of one judge."""

    win: Share
    tie: Share
    loss: Share
    unread: int
    first_chosen: Share
    """Verdicts for the candidate shown first, of comparisons read in both orders; 50 % without a
    position bias."""
    scores: dict[str, tuple[float, float]]
    """Mean score of side a and of side b by criterion."""

    @property
    def win_rate(self) -> WinRate:
        return WinRate(self.win.right + self.tie.right / 2, self.win.total)

    def to_json(self) -> dict[str, Any]:
        shares = {name: getattr(self, name).to_json() for name in ("win", "tie", "loss")}
        return {
            "win_rate": self.win_rate.to_json(),
            **shares,
            "unread": self.unread,
            "first_chosen": self.first_chosen.to_json(),
            "scores": {name: {"a": a, "b": b} for name, (a, b) in self.scores.items()},
        }


def tally(rulings: Rulings, num_pairs: int) -> Tally:
    outcomes = [rulings.outcome(pair) for pair in range(num_pairs)]
    counts = Counter(outcomes)
    total = num_pairs - counts[None]
    read = [pair for pair, outcome in enumerate(outcomes) if outcome is not None]
    first = (rulings.verdicts[pair, swapped].better for pair in read for swapped in (False, True))
    return Tally(
        win=Share(counts["a"], total),
        tie=Share(counts["tie"], total),
        loss=Share(counts["b"], total),
        unread=counts[None],
        first_chosen=Share.of(letter == "A" for letter in first),
        scores=_mean_scores(rulings, read),
    )


def _mean_scores(rulings: Rulings, pairs: Sequence[int]) -> dict[str, tuple[float, float]]:
    rows = [row for pair in pairs for row in rulings.scores(pair)]
    criteria = rows[0][0] if rows else {}
    return {
        name: (fmean(a[name] for a, _ in rows), fmean(b[name] for _, b in rows))
        for name in criteria
    }


def pooled(outcomes: Sequence[Outcomes]) -> WinRate:
    """Over judges: an image counts once, by the mean of those that read it, as judges of one image
    are no independent cases."""
    read = [[POINTS[each] for each in image if each] for image in zip(*outcomes, strict=True)]
    means = [fmean(points) for points in read if points]
    return WinRate(sum(means, 0.0), len(means))


@dataclass(frozen=True)
class Agreement:
    """Of two judges, on what both read."""

    same: Share
    kappa: float | None
    """Cohen's (1960); None where both say one thing only, or nothing."""

    def to_json(self) -> dict[str, Any]:
        return {**self.same.to_json(), "kappa": self.kappa}


def agreement(one: Outcomes, other: Outcomes) -> Agreement:
    """Win, tie and loss are three answers."""
    both = [(x, y) for x, y in zip(one, other, strict=True) if x and y]
    same = Share.of(x == y for x, y in both)
    return Agreement(same, _kappa(both, same))


def _kappa(both: Sequence[tuple[str, str]], same: Share) -> float | None:
    """``(p - e) / (1 - e)``: agreement beyond what the judges' own frequencies would give."""
    if not both:
        return None
    n = len(both)
    ones, others = Counter(x for x, _ in both), Counter(y for _, y in both)
    by_chance = sum(ones[outcome] * others[outcome] for outcome in POINTS) / n**2
    return None if by_chance == 1 else (same.right / n - by_chance) / (1 - by_chance)


def agreements(outcomes: Mapping[str, Outcomes]) -> dict[tuple[str, str], Agreement]:
    """Of each two judges."""
    names = list(outcomes)
    return {
        (one, other): agreement(outcomes[one], outcomes[other])
        for i, one in enumerate(names)
        for other in names[i + 1 :]
    }
