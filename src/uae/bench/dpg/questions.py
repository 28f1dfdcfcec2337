"""DPG-Bench's question file: a row for each question, an item for each run of equal ids.

Columns that are read: ``item_id``, ``text`` (the prompt), ``proposition_id`` (the question's
number), ``dependency`` ("0" for none, else the numbers of its parents with commas), ``tuple`` (the
category before its bracket), ``question_natural_language``.

A number that comes again in an item keeps its first place and has its last content. An id that
comes again after another item replaces the earlier one. Officially the first data row is lost.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from uae.data.encodings import encoding_of

COLUMNS = (
    "item_id",
    "text",
    "proposition_id",
    "dependency",
    "tuple",
    "question_natural_language",
)


@dataclass(frozen=True)
class DpgQuestion:
    """Something that a picture of the prompt should show."""

    number: int
    """Within its item; what parents are named by."""
    parents: tuple[int, ...]
    """Questions that must be answered yes for this one to count."""
    category: str
    """Of level 2, such as ``entity - whole``."""
    text: str

    @property
    def broad_category(self) -> str:
        """Of level 1, such as ``entity``."""
        return self.category.split("-")[0].strip()


@dataclass(frozen=True)
class DpgItem:
    """A prompt and its questions, in file order."""

    item_id: str
    prompt: str
    questions: tuple[DpgQuestion, ...]

    @property
    def problem(self) -> str | None:
        """Why it cannot be scored: a parent that does not exist. Officially an exception."""
        numbers = {question.number for question in self.questions}
        for question in self.questions:
            for parent in question.parents:
                if parent not in numbers:
                    return (
                        f"question {question.number} depends on question {parent}, which "
                        f"{self.item_id} lacks"
                    )
        return None


def read_questions(path: Path, loses_first_row: bool = False) -> dict[str, DpgItem]:
    """Items by id, in file order.

    loses_first_row: skip the first data row, as the official scorer does.

    Raises:
        ValueError: in one line with its place, when the file or a row cannot be read so.
    """
    items: dict[str, DpgItem] = {}
    last = None
    for row in _rows(path, skipped=int(loses_first_row)):
        item_id, prompt, question = row
        same = items[item_id] if item_id == last else DpgItem(item_id, prompt, ())
        numbered = {each.number: each for each in same.questions} | {question.number: question}
        items[item_id] = DpgItem(item_id, prompt, tuple(numbered.values()))
        last = item_id
    if not items:
        raise ValueError(f"{path}: expected questions, the file holds none")
    return items


def _rows(path: Path, skipped: int) -> Iterator[tuple[str, str, DpgQuestion]]:
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(
            f"{path}: expected the columns of dpg_bench.csv, {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; give the official file"
        )
    try:
        for place, row in enumerate(reader):
            if place >= skipped:
                yield _row(row, f"{path}, line {reader.line_num}")
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: expected a table, {error}") from error


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        return content.decode(encoding_of(content))
    except IsADirectoryError as error:
        raise ValueError(f"{path}: expected a CSV of questions, got a folder") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got other bytes") from error


def _row(row: Mapping[str, str | None], place: str) -> tuple[str, str, DpgQuestion]:
    cells = {name: row[name] for name in COLUMNS}
    if empty := [name for name, cell in cells.items() if not (cell or "").strip()]:
        raise ValueError(f"{place}: expected a {empty[0]}, got an empty cell; fill it in")
    parents = [_number(part, "dependency", place) for part in str(cells["dependency"]).split(",")]
    question = DpgQuestion(
        number=_number(str(cells["proposition_id"]), "proposition_id", place),
        parents=tuple(parent for parent in parents if parent != 0),
        category=str(cells["tuple"]).split("(")[0].strip(),
        text=str(cells["question_natural_language"]),
    )
    return str(cells["item_id"]), str(cells["text"]), question


def _number(text: str, name: str, place: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"{place}: expected whole numbers as {name}, got {text.strip()[:30]!r}"
        ) from None
