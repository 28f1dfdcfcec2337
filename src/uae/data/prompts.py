"""Prompt files as people bring them: lists, tables and JSON, in any encoding of Unicode that says
what it is.

A file's extension says what it holds: ``.txt`` a prompt in each line, ``.csv`` and ``.tsv`` a table
with a column of prompts (PartiPrompts' ``Prompt``, DPG-Bench's ``text``), ``.jsonl`` and ``.json``
strings, or objects with a ``prompt`` (GenEval's ``evaluation_metadata.jsonl``). A prompt is never
changed, but for spaces around it; what can be none is refused, with its place.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from uae.data.encodings import encoding_of
from uae.utils.messages import one_line

# of tables, in any case; the first there is
COLUMNS = ("prompt", "prompts", "text", "caption", "captions")
PromptRow = dict[str, Any]


def read_prompts(path: Path) -> list[PromptRow]:
    """Each prompt as ``prompt`` of a row, beside what else the file says of it.

    Raises:
        ValueError: in one line, when the file or one of its rows cannot be read so.
    """
    readers = {
        ".txt": _list,
        "": _list,
        ".csv": _table,
        ".tsv": _table,
        ".json": _json,
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ValueError(
            f"{path}: expected prompts in a .txt, .csv, .tsv, .json or .jsonl file, got {suffix}"
        )
    try:
        rows = [_checked(row, place) for place, row in readers[suffix](_read_text(path), suffix)]
    except ValueError as error:
        raise ValueError(f"{path}{error}") from error
    if not rows:
        raise ValueError(f"{path}: expected prompts, the file holds none")
    return rows


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise ValueError(": expected a file of prompts, got a folder")
    content = path.read_bytes()
    try:
        text = content.decode(encoding_of(content))
    except UnicodeDecodeError as error:
        raise ValueError(
            f": expected text in UTF-8, or UTF-16 with its mark, got other bytes at {error.start}; "
            "save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(
            ": expected text in UTF-8, or UTF-16 with its mark, got null characters; save it as "
            "UTF-8"
        )
    return text


def _checked(row: Any, place: str) -> PromptRow:
    """A row with a prompt that a tokenizer and a JSON file can take."""
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError(f'{place}: expected a string or {{"prompt": "…"}}, got {_start(row)}')
    prompt = row["prompt"]
    if not prompt.strip():
        raise ValueError(f"{place}: the prompt is empty; fill it in or remove it")
    for character in prompt:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
            raise ValueError(
                f"{place}: the prompt holds the control character {character!a}; remove it"
            )
    return row | {"prompt": prompt.strip()}


def _start(value: Any) -> str:
    return json.dumps(value)[:60]


# --- by extension: rows with their places --------------------------------------------------------


def _lines(text: str) -> list[tuple[str, str]]:
    """Those that are not blank, with their places."""
    lines = enumerate(re.split(r"\r\n|\n|\r", text), 1)
    return [(f", line {number}", line) for number, line in lines if line.strip()]


def _list(text: str, suffix: str) -> list[tuple[str, Any]]:
    """A prompt in each line. Headers and JSON are not painted: the file has the extension of
    another kind."""
    for place, line in _lines(text)[:1]:
        cells = [cell.strip(' "').lower() for cell in re.split(r"[\t,]", line)]
        if len(cells) > 1 and set(cells) & set(COLUMNS):
            raise ValueError(
                f"{place}: expected a prompt, got the header of a table; rename the file to .csv "
                "or .tsv"
            )
        if re.match(r'\s*(\[|\{\s*")', line):
            raise ValueError(
                f"{place}: expected a prompt, got JSON; rename the file to .jsonl or .json"
            )
    return _lines(text)


def _json_lines(text: str, suffix: str) -> list[tuple[str, Any]]:
    return [(place, _parsed(line, place)) for place, line in _lines(text)]


def _json(text: str, suffix: str) -> list[tuple[str, Any]]:
    if not text.strip():
        return []
    rows = _parsed(text, "")
    if not isinstance(rows, list):
        raise ValueError(f": expected a list of prompts, got {_start(rows)}")
    return [(f", item {number}", row) for number, row in enumerate(rows, 1)]


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{place}: expected JSON, got {text.strip()[:60]!r} ({one_line(error)})"
        ) from error


def _table(text: str, suffix: str) -> list[tuple[str, Any]]:
    """A row for each of the table's. In a ``.tsv`` that is not quoted by the rules of CSV, quotes
    are the prompts'."""
    delimiter = "\t" if suffix == ".tsv" else ","
    try:
        rows = _cells(text, delimiter)
    except ValueError:
        if suffix != ".tsv":
            raise
        rows = _cells(text, delimiter, is_quoted=False)
    if not rows:
        return []
    (place, header), *rows = rows
    names = [name.strip() for name in header]
    column = _prompt_column(names, place)
    prompts = []
    for place, cells in rows:
        if len(cells) != len(names):
            raise ValueError(
                f"{place}: expected {len(names)} cells, as in the header, got {len(cells)}"
            )
        columns = zip(names, cells, strict=True)
        others = {name: cell for name, cell in columns if name not in (names[column], "prompt")}
        prompts.append((place, {"prompt": cells[column]} | others))
    return prompts


def _cells(text: str, delimiter: str, is_quoted: bool = True) -> list[tuple[str, list[str]]]:
    """Rows that are not blank, with the line that each ends in."""
    quoting = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True
    )
    rows = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((f", line {reader.line_num}", cells))
    except csv.Error as error:
        raise ValueError(f", line {reader.line_num}: expected a table, {error}") from error
    return rows


def _prompt_column(names: list[str], place: str) -> int:
    lower = [name.lower() for name in names]
    column = next((lower.index(name) for name in COLUMNS if name in lower), None)
    if column is None:
        raise ValueError(
            f"{place}: expected a table whose header names a column of prompts "
            f"({', '.join(COLUMNS)}), got {', '.join(names)[:200]}"
        )
    return column
