"""Cells of a table that may be larger than memory: one record at a time, and where each begins.

Tabs or commas part cells; cells may be quoted and then hold line breaks. A record that is broken is
told, and reading goes on with the next line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from uae.utils.messages import one_line, printable

MAX_CELL = 1 << 28  # characters: a list of large images; a quote that is never closed ends there
DELIMITERS = {".tsv": "\t", ".csv": ","}
BLANKS = {  # what pandas reads as an empty cell
    *("", "#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "None", "n/a", "null"),
    *("-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN", "-NaN", "-nan", "NaN", "nan"),
}
_BOM = b"\xef\xbb\xbf"
_WHOLE = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Lines:
    """The lines of an open file, and how far it was read. An error does not end them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.position = file, file.tell()

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.position += len(line)
        return line.decode()


class Records:
    """The records of an open file from where it stands, each with the byte where it begins; a text
    in place of the cells says why there are none."""

    def __init__(self, file: BinaryIO, delimiter: str = "\t") -> None:
        csv.field_size_limit(max(MAX_CELL, csv.field_size_limit()))
        self._lines = Lines(file)
        self._reader = csv.reader(self._lines, delimiter=delimiter)

    def __iter__(self) -> Iterator[tuple[int, list[str] | str]]:
        while True:
            start = self._lines.position
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                yield start, one_line(error)
                continue
            if cells:
                yield start, cells


@contextmanager
def open_table(path: Path) -> Iterator[tuple[list[str], Records]]:
    """The names of the columns (in lower case, but for the letters of options) and the records
    below.

    Raises:
        ValueError: where it is no table.
    """
    with open_to_read(path) as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        records = Records(file, delimiter_of(path))
        _, header = next(iter(records), (0, "it is empty"))
        if isinstance(header, str):
            raise ValueError(f"{path}: expected the names of columns in the first line: {header}")
        yield [_column(name) for name in header], records


@contextmanager
def open_to_read(path: Path) -> Iterator[BinaryIO]:
    """A file of lines, with an error of one line where it cannot be read."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise ValueError(
            f"{path}: expected a file to read, it cannot be: {error.strerror or error}"
        ) from error


def delimiter_of(path: Path) -> str:
    """What parts cells, by the file's name.

    Raises:
        ValueError: for another kind of file.
    """
    delimiter = DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        raise ValueError(f"{path}: expected a .tsv or .csv file; save it as one")
    return delimiter


def check_columns(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    """A ValueError that names the columns that a table lacks."""
    if missing := [name for name in needed if name not in columns]:
        shown = ", ".join(printable(name)[:40] for name in columns[:20])
        raise ValueError(
            f"{path}: expected the columns {', '.join(needed)}; {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing (there are {shown})"
        )


def read_index(cell: str) -> int | str:
    """The name of a row: a whole number where it is one, as spreadsheets write them too."""
    cell = cell.strip()
    whole = cell.removesuffix(".0")
    return int(whole) if whole.isascii() and whole.isdecimal() else cell


class Spreadsheet:
    """What cells become in the official code, which passes tables through pandas and a spreadsheet:
    words such as "None" and "N/A" are empty, and where all cells of a column are numbers they are
    written anew, with a point where one is no whole number or empty."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._points: set[str] = set()

    def note(self, column: str, cell: str) -> None:
        """All cells of a column are noted before ``text`` is asked for."""
        if column in self._texts:
            return
        if cell in BLANKS or not _WHOLE.fullmatch(cell):
            self._points.add(column)
        if cell not in BLANKS and not _NUMBER.fullmatch(cell):
            self._texts.add(column)

    def text(self, column: str, cell: str) -> str:
        """The cell as the official code sees it; nothing where it is empty."""
        if cell in BLANKS:
            return ""
        if column in self._texts:
            return cell
        return str(float(cell) if column in self._points else int(cell))


def _column(name: str) -> str:
    name = name.strip()
    return name if len(name) == 1 and name.isupper() else name.lower()
