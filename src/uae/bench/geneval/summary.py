"""GenEval's numbers from its result rows.

    score of a tag = share of its images that are right,   overall = plain mean over tags

and the share of prompts with any image right, a prompt being the text of its metadata. Beyond the
official summary: 95 % intervals. Wilson's of the shares take images for independent, which those of
one prompt are not quite; the overall's is a bootstrap that draws whole prompts within each tag.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uae.bench.result import Interval, Share

NUM_BOOTSTRAP = 2000
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """Shares times 100, wherever they are numbers."""

    tags: dict[str, Share]
    """Of images, in order of first appearance."""
    images: Share
    prompts: Share
    """Those with any image right."""
    overall_interval: Interval | None

    @property
    def overall(self) -> float | None:
        """None without any image."""
        scores = [share.right / share.total for share in self.tags.values()]
        return 100 * sum(scores) / len(scores) if scores else None


def summarise(rows: Sequence[Row], seed: int = 0) -> Summary:
    """Of all rows of a results file, in file order."""
    by_prompt = group(rows, "metadata")
    return Summary(
        tags={tag: Share.of(rights) for tag, rights in group(rows, "tag").items()},
        images=Share.of(row["correct"] for row in rows),
        prompts=Share.of(any(rights) for rights in by_prompt.values()),
        overall_interval=_bootstrap(rows, seed) if rows else None,
    )


def group(rows: Iterable[Row], key: str) -> dict[str, list[bool]]:
    """Which images are right, by a value of their rows."""
    groups: dict[str, list[bool]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(bool(row["correct"]))
    return groups


def _bootstrap(rows: Sequence[Row], seed: int) -> Interval:
    """Percentile interval of the overall score."""
    rng = np.random.default_rng(seed)
    means = np.zeros(NUM_BOOTSTRAP)
    tags = dict.fromkeys(row["tag"] for row in rows)
    for tag in tags:
        prompts = group((row for row in rows if row["tag"] == tag), "metadata").values()
        right = np.array([sum(rights) for rights in prompts])
        total = np.array([len(rights) for rights in prompts])
        drawn = rng.integers(len(right), size=(NUM_BOOTSTRAP, len(right)))
        means += right[drawn].sum(1) / total[drawn].sum(1) / len(tags)
    low, high = np.quantile(100 * means, [0.025, 0.975])
    return Interval(float(low), float(high))
