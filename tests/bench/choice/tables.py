"""Tables of questions for tests."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image


def picture(level: int = 0, size: int = 8) -> str:
    """A grey PNG in base64; the levels of two differ by content."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (level, level, 255 - level)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_tsv(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """All columns that any row has; None is an empty cell."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, delimiter="\t")
        table.writeheader()
        table.writerows(rows)
    return path


def question(index: int | str, **changed: Any) -> dict[str, Any]:
    """A row that can be used, but for what is changed."""
    row = {
        "index": index,
        "image": picture(),
        "question": f"question {index}?",
        "A": "left",
        "B": "right",
        "answer": "A",
        "category": "places",
        "split": "dev",
    }
    return row | changed
