"""Rows of files that say what images are captioned: ``{"image": NAME, "caption": TEXT}``."""

from __future__ import annotations

from typing import Any

NAME_KEYS = ("image", "file_name", "name")
CAPTION_KEYS = ("caption", "text")


def name_and_caption(row: Any) -> tuple[str, str] | None:
    """Of a JSON value; None where it does not say them."""
    if not isinstance(row, dict):
        return None
    name = next((row[key] for key in NAME_KEYS if isinstance(row.get(key), str)), None)
    caption = next((row[key] for key in CAPTION_KEYS if isinstance(row.get(key), str)), None)
    return None if name is None or caption is None else (name, caption)
