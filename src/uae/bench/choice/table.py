"""Questions in a TSV of VLMEvalKit's kind, one row at a time.

    index  question  hint  A  B  C …  answer  category  l2-category  split  g_index
    image         base64, a list of such, or the index of the row that has the image
    image_path    one or a list, where there is no ``image``

The file is read through once, for where each row begins; a row is read again when it is wanted, so
images are never all in memory. Rows that cannot be used are left out, with a line for each.

MMMU has open questions, without an option A: the right answer becomes A, "Other Answers" B.

Deviations from VLMEvalKit: a row whose answer is none of its options is left out, not wrong in all
cases; of rows with one index the first counts, not the last; "None" and "N/A" are texts, not empty
cells; an open question whose answer is one capital letter can be answered. ``official_defects``
brings the last two back.
"""

from __future__ import annotations

import string
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from uae.bench.choice.cells import (
    Records,
    Spreadsheet,
    check_columns,
    delimiter_of,
    open_table,
    read_index,
)
from uae.utils.messages import printable

NEEDED = ("index", "question", "answer")
LETTERS = string.ascii_uppercase
OTHER = "Other Answers"
Index = int | str


@dataclass(frozen=True, slots=True)
class Row:
    """A question with its options."""

    number: int
    """In the file, from 1; the names of the columns are not counted."""
    index: Index
    question: str
    hint: str
    choices: dict[str, str]
    """Letter → text."""
    is_open: bool
    """It was asked without options."""
    answer: str
    """The right letter."""
    split: str
    category: str
    l2_category: str
    group: Index | None
    """The question that it is a rotation of, where the table says so."""
    image: str
    """The cell of ``image``."""
    image_path: str


class ChoiceTable:
    """The questions of a file.

    Raises:
        ValueError: where it is no table of questions, or none of them can be used.
    """

    def __init__(
        self, path: Path, *, has_open_questions: bool = False, official_defects: bool = False
    ) -> None:
        self.path, self._has_open, self._defects = path, has_open_questions, official_defects
        self._sheet = Spreadsheet() if official_defects else None
        self.problems: list[str] = []
        """A line for each row that is left out."""
        self._offsets, self._numbers = array("q"), array("q")
        self._places: dict[Index, int] = {}
        self._unusable: set[Index] = set()
        with open_table(path) as (self.columns, records):
            check_columns(path, self.columns, NEEDED)
            self._letters = [letter for letter in LETTERS if letter in self.columns]
            if not self._letters:
                raise ValueError(f"{path}: expected columns of options, A, B …; there is none")
            self._scan(records)
        if not self.indexes:
            raise ValueError(f"{path}: no question can be used: {'; '.join(self.problems[:3])}")

    @property
    def has_images(self) -> bool:
        """There is a column of them."""
        return "image" in self.columns or "image_path" in self.columns

    @property
    def has_groups(self) -> bool:
        """It says which rows are rotations of which."""
        return "g_index" in self.columns

    @property
    def indexes(self) -> list[Index]:
        """Of the questions that can be used, in order."""
        return [index for index in self._places if index not in self._unusable]

    def rows(self) -> Iterator[Row]:
        """The questions that can be used, in order, without holding them."""
        with open(self.path, "rb") as file:
            for index, place in self._places.items():
                if index not in self._unusable:
                    yield self._row(self._numbers[place], self._cells(file, place))

    def row(self, index: Index) -> Row:
        """One question."""
        place = self._places[index]
        with open(self.path, "rb") as file:
            return self._row(self._numbers[place], self._cells(file, place))

    def image_cell(self, index: Index) -> str | None:
        """The cell of ``image`` of any row, also of one that is left out; None without the row."""
        if index not in self._places:
            return None
        with open(self.path, "rb") as file:
            cells = self._cells(file, self._places[index])
        return cells[self.columns.index("image")]

    def told(self, row: Row, problem: str) -> str:
        """A problem of a row, with file and row."""
        return self._told(row.number, row.index, problem)

    # --- reading ---------------------------------------------------------------------------------

    def _scan(self, records: Records) -> None:
        for number, (start, cells) in enumerate(records, 1):
            if isinstance(cells, str):
                self.problems.append(self._told(number, None, cells))
                continue
            index = None
            try:
                index = self._new_index(cells)
                self._places[index] = len(self._offsets)
                self._offsets.append(start)
                self._numbers.append(number)
                self._note(cells)
                self._row(number, cells)
            except ValueError as error:
                self.problems.append(self._told(number, index, str(error)))
                if index is not None:
                    self._unusable.add(index)

    def _new_index(self, cells: Sequence[str]) -> Index:
        if len(cells) != len(self.columns):
            raise ValueError(f"expected {len(self.columns)} cells, got {len(cells)}")
        index = read_index(cells[self.columns.index("index")])
        if index == "":
            raise ValueError("expected an index, the cell is empty")
        if index in self._places:
            first = self._numbers[self._places[index]]
            raise ValueError(f"the index {printable(str(index))} is that of row {first} already")
        return index

    def _note(self, cells: Sequence[str]) -> None:
        if self._sheet is not None:
            for column in self._letters:
                self._sheet.note(column, cells[self.columns.index(column)])

    def _cells(self, file: BinaryIO, place: int) -> list[str]:
        """Of a record that was read before."""
        file.seek(self._offsets[place])
        _, cells = next(iter(Records(file, delimiter_of(self.path))), (0, "it is gone"))
        if isinstance(cells, str) or len(cells) != len(self.columns):
            raise ValueError(f"{self.path}: the file was changed meanwhile; start again")
        return cells

    def _row(self, number: int, cells: Sequence[str]) -> Row:
        """A ValueError where it cannot be used."""
        named = dict(zip(self.columns, cells, strict=True))
        choices = self._choices(named)
        answer, is_open = named["answer"].strip(), False
        if self._has_open and "A" not in choices and answer:
            is_open, choices = True, {**choices, "A": answer, "B": OTHER}
            is_letter = len(answer) == 1 and answer in LETTERS
            answer = answer if self._defects and is_letter else "A"
        group = named.get("g_index", "").strip()
        row = Row(
            number=number,
            index=read_index(named["index"]),
            question=named["question"],
            hint=self._text("hint", named),
            choices=dict(sorted(choices.items())),
            is_open=is_open,
            answer=answer,
            split=named.get("split", "").strip(),
            category=named.get("category", "").strip(),
            l2_category=named.get("l2-category", "").strip(),
            group=read_index(group) if group else None,
            image=named.get("image", ""),
            image_path=named.get("image_path", ""),
        )
        self._check(row)
        return row

    def _choices(self, named: dict[str, str]) -> dict[str, str]:
        texts = {letter: self._text(letter, named) for letter in self._letters}
        return {letter: text for letter, text in texts.items() if text}

    def _text(self, column: str, named: dict[str, str]) -> str:
        """Of an option or a hint; nothing where the cell is empty."""
        cell = named.get(column, "")
        if self._sheet is not None and column in self._letters:
            return self._sheet.text(column, cell)
        return cell if cell.strip() else ""

    def _check(self, row: Row) -> None:
        if not row.question.strip():
            raise ValueError("expected a question, the cell is empty")
        if not row.answer:
            raise ValueError(
                "expected the right answer, the cell is empty (tests without answers are scored by "
                "their publishers)"
            )
        if row.answer not in row.choices and not row.is_open:
            letters = ", ".join(row.choices) or "none"
            raise ValueError(
                f"the answer {printable(row.answer[:20])!r} is no option (there is {letters})"
            )
        if self.has_images and not row.image.strip() and not row.image_path.strip():
            raise ValueError("expected an image, the cell is empty")

    def _told(self, number: int, index: Index | None, problem: str) -> str:
        named = "" if index is None else f" (index {printable(str(index))})"
        return f"{self.path}: row {number}{named}: {problem}"
