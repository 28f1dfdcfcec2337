"""What differs between two models on the same items, and whether chance would do as much.

    d_i = after_i - before_i,   delta = mean_i d_i

The interval and the p-value are of a paired bootstrap: items are drawn with replacement, both
models' values of an item together (Efron and Tibshirani, 1993, ch. 16; Koehn, EMNLP 2004). Items
that belong together, such as the questions of one image, are drawn together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from uae.bench.bootstrap import interval_of, resampled

NUM_BOOTSTRAP = 10_000
DELTA = "delta"


@dataclass(frozen=True)
class Paired:
    """A measure before and after, times 100, on the items that both have."""

    before: float
    after: float
    low: float
    """Of the difference, 95 %."""
    high: float
    p: float
    """Two-sided: how often resampled differences are on the other side of 0, or on it."""
    num_items: int
    num_left_out: int
    """Items that only one of the two has."""

    @property
    def delta(self) -> float:
        return self.after - self.before

    @property
    def is_significant(self) -> bool:
        """The interval is to one side of 0."""
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, Any]:
        return {
            "before": self.before,
            "after": self.after,
            "delta": self.delta,
            "low": self.low,
            "high": self.high,
            "p": self.p,
            "num_items": self.num_items,
            "num_left_out": self.num_left_out,
        }


def compare(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    group_of: Callable[[str], str] = lambda item: item,
    num_bootstrap: int = NUM_BOOTSTRAP,
    seed: int = 0,
) -> Paired | None:
    """Values by item, in [0, 1]; None where no item is in both.

    group_of: what an item is drawn together with.
    """
    shared = [item for item in before if item in after]
    if not shared:
        return None
    cases: dict[str, list[float]] = {}  # the sum of differences, and how many
    for item in shared:
        case = cases.setdefault(group_of(item), [0.0, 0.0])
        case[0] += after[item] - before[item]
        case[1] += 1
    sums = [{DELTA: (total, number)} for total, number in cases.values()]
    deltas = resampled(sums, num_bootstrap, seed)[DELTA]
    interval = interval_of(deltas)
    assert interval is not None, "each case has an item"
    below, above = (deltas <= 0).sum(), (deltas >= 0).sum()
    return Paired(
        before=100 * fmean(before[item] for item in shared),
        after=100 * fmean(after[item] for item in shared),
        low=interval.low,
        high=interval.high,
        p=float(min(1.0, 2 * (min(below, above) + 1) / (num_bootstrap + 1))),
        num_items=len(shared),
        num_left_out=len(before) + len(after) - 2 * len(shared),
    )
