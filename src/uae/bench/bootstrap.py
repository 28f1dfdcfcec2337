"""Percentile bootstrap of ratios of sums, such as a mean over pictures whose prompts are drawn.

What belongs together is one case. Cases are drawn with replacement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from uae.bench.result import Interval

TAILS = (0.025, 0.975)
CHUNK = 500  # draws at a time, for memory
Number = int | float
Sums = Mapping[str, tuple[Number, Number]]
"""Of one case: by score, what is added up and how often."""


def resampled(
    cases: Sequence[Sums], num_bootstrap: int, seed: int
) -> dict[str, Float[np.ndarray, " R"]]:
    """Each score, times 100, of R draws of the cases; not-a-number where none of it was drawn."""
    names = list(dict.fromkeys(name for sums in cases for name in sums))
    if not names:
        return {}
    pairs = np.array([[sums.get(name, (0.0, 0.0)) for name in names] for sums in cases], float)
    rng = np.random.default_rng(seed)
    even = np.full(len(cases), 1 / len(cases))
    parts = []
    for start in range(0, num_bootstrap, CHUNK):
        draws = rng.multinomial(len(cases), even, size=min(CHUNK, num_bootstrap - start))
        parts.append(np.einsum("rn,nsk->ksr", draws, pairs))
    sums, counts = np.concatenate(parts, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = 100 * sums / counts
    return dict(zip(names, ratios, strict=True))


def interval_of(values: Float[np.ndarray, " R"]) -> Interval | None:
    """The middle 95 % of those that are numbers."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, TAILS)
    return Interval(float(low), float(high))
