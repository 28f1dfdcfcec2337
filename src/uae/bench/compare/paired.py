"""What differs between two models on the same items, and whether chance would do as much.

    d_i = after_i - before_i,   delta = mean_i d_i

The interval and the p-value are of a paired bootstrap: items are drawn with replacement, both
models' values of an item together (Efron and Tibshirani, 1993, ch. 16; Koehn, EMNLP 2004). Items
that belong together, such as the questions of one image, are drawn together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
NUM_BOOTSTRAP = 10_000
CHUNK = 500  # resamples at a time


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
    values = np.array([(before[item], after[item]) for item in shared], dtype=np.float64)
    names = {name: i for i, name in enumerate(dict.fromkeys(map(group_of, shared)))}
    group = np.array([names[group_of(item)] for item in shared])
    sums = np.zeros((len(names), 2))  # of differences, and how many
    np.add.at(sums, group, np.stack([values[:, 1] - values[:, 0], np.ones(len(values))], axis=1))
    deltas = _resampled(sums, num_bootstrap, seed)
    tail = (1 - CONFIDENCE) / 2
    low, high = 100 * np.quantile(deltas, [tail, 1 - tail])
    below, above = (deltas <= 0).sum(), (deltas >= 0).sum()
    first, second = 100 * values.mean(axis=0)
    return Paired(
        before=float(first),
        after=float(second),
        low=float(low),
        high=float(high),
        p=float(min(1.0, 2 * (min(below, above) + 1) / (num_bootstrap + 1))),
        num_items=len(shared),
        num_left_out=len(before) + len(after) - 2 * len(shared),
    )


def _resampled(sums: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Mean differences of so many resamples of the groups."""
    rng = np.random.default_rng(seed)
    deltas = []
    for start in range(0, number, CHUNK):
        draws = rng.integers(len(sums), size=(min(CHUNK, number - start), len(sums)))
        totals = sums[draws].sum(axis=1)
        deltas.append(totals[:, 0] / totals[:, 1])
    return np.concatenate(deltas)
