"""Two models side by side for people: one table, and the reconstructions that gained and lost
most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uae.images.write import png_address
from uae.report.page import render
from uae.types import RoundTrip
from uae.utils.files import atomic_write_text


@dataclass(frozen=True)
class ComparedTrip:
    """One image by both models."""

    name: str
    before: RoundTrip
    after: RoundTrip
    delta: float
    """Of its similarity, times 100."""


def write_comparison(
    path: Path,
    models: tuple[str, str],
    rows: Sequence[Mapping[str, Any]],
    best: Sequence[ComparedTrip],
    worst: Sequence[ComparedTrip],
    notes: Sequence[str] = (),
) -> None:
    """The page, whole or not at all.

    rows: with ``group``, ``measure``, and the texts ``before``, ``after``, ``delta``, ``interval``,
    ``p``, ``items``, and whether it ``is_significant``.
    """
    page = render(
        "compare.html.j2",
        before=models[0],
        after=models[1],
        rows=rows,
        groups=(("What gained most", _shown(best)), ("What lost most", _shown(worst))),
        notes=notes,
    )
    atomic_write_text(path, page)


def _shown(trips: Sequence[ComparedTrip]) -> list[dict[str, Any]]:
    return [
        {
            "name": trip.name,
            "delta": f"{trip.delta:+.2f}",
            "source": png_address(trip.before.source),
            "sides": [
                {"caption": side.caption, "image": png_address(side.reconstruction)}
                for side in (trip.before, trip.after)
            ],
        }
        for trip in trips
    ]
