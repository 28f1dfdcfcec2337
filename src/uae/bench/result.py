"""What the results of benchmarks have in common: intervals, shares with theirs, and versions."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

_Z = 1.959963984540054  # 95 %, two-sided


@dataclass(frozen=True)
class Interval:
    """Of 95 %, times 100."""

    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """``right`` of ``total``; times 100 wherever it is a number."""

    right: int
    total: int

    @classmethod
    def of(cls, answers: Iterable[bool]) -> Share:
        """How many of these are true."""
        listed = [bool(answer) for answer in answers]
        return cls(sum(listed), len(listed))

    @property
    def percent(self) -> float | None:
        """None where there was nothing to count."""
        return 100 * self.right / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's, times 100."""
        return wilson(self.right, self.total)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval or (None, None)
        return {
            "percent": self.percent,
            "low": low,
            "high": high,
            "right": self.right,
            "total": self.total,
        }


def wilson(right: int | float, total: int) -> tuple[float, float] | None:
    """Wilson's 95 % interval (JASA 22, 1927) of a share, times 100: honest near 0 and 100 % and for
    few cases; None where there was nothing to count. A case may be half right, which makes it
    wider than need be."""
    if not total:
        return None
    p, n, z2 = right / total, total, _Z * _Z
    centre, half = p + z2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return 100 * max(0.0, low), 100 * min(1.0, high)


def first_of(lines: Sequence[str], rest: str = "… and {} more", most: int = 10) -> list[str]:
    """The first lines, and one that says how many more there are, if there are."""
    more = len(lines) - most
    return [*lines[:most], *([rest.format(more)] if more > 0 else [])]


def shares_to_json(shares: Mapping[str, Share]) -> dict[str, Any]:
    """Each share by name, ready for JSON."""
    return {name: share.to_json() for name, share in shares.items()}


def versions() -> dict[str, str]:
    """Of everything that could change a number."""
    names = ("unified-autoencoder", "torch", "transformers", "diffusers", "peft", "numpy")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **{name: version(name) for name in names},
    }
