"""A page of round trips: source | caption | reconstruction, self-contained; all text is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from uae.images.write import png_address
from uae.report.page import render
from uae.types import RoundTrip
from uae.utils.files import atomic_write_text


def write_gallery(path: Path, trips: Mapping[str, RoundTrip], note: str = "") -> None:
    """Write the page of round trips by name, whole or not at all."""
    rows = [
        (name, png_address(trip.source), trip.caption, png_address(trip.reconstruction))
        for name, trip in trips.items()
    ]
    small = all(max(trip.source.shape[1:]) <= 128 for trip in trips.values())
    atomic_write_text(path, render("gallery.html.j2", note=note, rows=rows, small=small))
