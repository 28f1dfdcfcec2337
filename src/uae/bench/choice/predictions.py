"""Answers that were made elsewhere: a .tsv or .csv with the columns ``index`` and ``prediction``,
as VLMEvalKit writes it, or a .jsonl of objects with these keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uae.bench.choice.cells import check_columns, open_table, open_to_read, read_index
from uae.utils.messages import printable

NEEDED = ("index", "prediction")
Index = int | str


@dataclass(frozen=True)
class Predictions:
    """What a file says."""

    texts: dict[Index, str] = field(default_factory=dict)
    """By index; of two, the first."""
    problems: list[str] = field(default_factory=list)
    """A line for each row that says nothing."""


def read_predictions(path: Path) -> Predictions:
    """All of a file.

    Raises:
        ValueError: where it is no file of predictions.
    """
    if path.suffix.lower() not in (".tsv", ".csv", ".jsonl"):
        raise ValueError(f"{path}: expected predictions as .tsv, .csv or .jsonl; save them as one")
    found = Predictions()
    rows = _json_rows(path) if path.suffix.lower() == ".jsonl" else _table_rows(path)
    for number, row in enumerate(rows, 1):
        problem = row if isinstance(row, str) else _added(found.texts, *row)
        if problem:
            found.problems.append(f"{path}: row {number}: {problem}")
    return found


def _added(texts: dict[Index, str], cell: str, text: str) -> str | None:
    """Why it was not added."""
    index = read_index(cell)
    if index == "":
        return "expected an index, there is none"
    if index in texts:
        return f"a second prediction for index {printable(cell)}; the first one counts"
    texts[index] = text
    return None


def _table_rows(path: Path) -> Iterator[tuple[str, str] | str]:
    with open_table(path) as (columns, records):
        check_columns(path, columns, NEEDED)
        at_index, at_prediction = (columns.index(name) for name in NEEDED)
        for _, cells in records:
            if isinstance(cells, str):
                yield cells
            elif len(cells) != len(columns):
                yield f"expected {len(columns)} cells, got {len(cells)}"
            else:
                yield cells[at_index], cells[at_prediction]


def _json_rows(path: Path) -> Iterator[tuple[str, str] | str]:
    with open_to_read(path) as file:
        for line in file:
            if line.strip():
                yield _json_row(line)


def _json_row(line: bytes) -> tuple[str, str] | str:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not all(name in row for name in NEEDED):
        return 'expected an object with "index" and "prediction"'
    text = row["prediction"]
    return str(row["index"]), "" if text is None else str(text)
