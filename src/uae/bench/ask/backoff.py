"""How long to wait before a request is made again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

LONGEST_ASKED_SEC = 120.0  # a server that asks for more is asked again then


@dataclass(frozen=True)
class Backoff:
    """Twice as long each time, from ``first_sec`` to ``longest_sec``; as long as the server asks
    where it does."""

    first_sec: float = 0.5
    longest_sec: float = 30.0

    def wait_sec(self, num_failed: int, asked_sec: float | None) -> float:
        """After so many failures of one request, at least one."""
        if asked_sec is not None:
            return min(asked_sec, LONGEST_ASKED_SEC)
        return min(self.first_sec * 2 ** (num_failed - 1), self.longest_sec)


def asked_to_wait_sec(headers: Mapping[str, str]) -> float | None:
    """What a response's headers ask for: ``retry-after-ms``, or ``Retry-After`` in seconds or as a
    date; None where they ask nothing that can be read."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        if (seconds := _number(headers.get(name, ""), scale)) is not None:
            return seconds
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())


def _number(text: str, scale: float) -> float | None:
    try:
        seconds = float(text) * scale
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
