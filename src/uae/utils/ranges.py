"""Settings that cannot be meant are refused where they are made: before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Range(NamedTuple):
    """What a number must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


AT_LEAST_0 = Range("at least 0", lambda value: 0 <= value < math.inf)
AT_LEAST_1 = Range("at least 1", lambda value: 1 <= value < math.inf)
ABOVE_0 = Range("above 0 and finite", lambda value: 0 < value < math.inf)
AT_MOST_1 = Range("at least 0 and at most 1", lambda value: 0 <= value <= 1)
A_SHARE = Range("above 0 and at most 1", lambda value: 0 < value <= 1)
BELOW_1 = Range("at least 0 and below 1", lambda value: 0 <= value < 1)


def check_ranges(settings: object, ranges: dict[str, Range]) -> None:
    """A ValueError that names each field out of its range, as the command line spells it; None is
    no number."""
    problems = [
        f"{spelled(name)}: expected {expected.words}, got {value}"
        for name, expected in ranges.items()
        if (value := getattr(settings, name)) is not None and not expected.holds(value)
    ]
    if problems:
        raise ValueError("; ".join(problems))


def refuse_if(*contradictions: tuple[bool, str]) -> None:
    """A ValueError with the first message whose condition holds."""
    for holds, message in contradictions:
        if holds:
            raise ValueError(message)


def spelled(name: str) -> str:
    """A field as an option."""
    return name.replace("_", "-")
