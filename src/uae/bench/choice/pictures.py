"""The images of a question: decoded when they are wanted, from cells or from files.

A cell of at most 64 characters is the index of the row that has the image, as in VLMEvalKit. Paths
are relative to the folder of images, by default the table's own.
"""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
from dataclasses import dataclass
from pathlib import Path

from uae.bench.choice.cells import read_index
from uae.bench.choice.table import ChoiceTable, Row
from uae.images.read import read_content
from uae.utils.messages import printable

REFERENCE_LENGTH = 64


@dataclass(frozen=True)
class QuestionImages:
    """Those of a table's questions."""

    table: ChoiceTable
    folder: Path | None = None
    """Where paths begin; by default where the table is."""

    def files(self, row: Row) -> list[bytes]:
        """The files' contents, not decoded as images.

        Raises:
            ValueError: of one line, with file and row, where one cannot be had.
        """
        try:
            if row.image.strip():
                return [_from_base64(text) for text in self._encoded(row)]
            return [read_content(path) for path in self._paths(row)]
        except ValueError as error:
            raise ValueError(self.table.told(row, str(error))) from error

    def digest(self, row: Row) -> str:
        """Of all that is shown; it raises what ``files`` raises, but for base64 that is broken."""
        digest = hashlib.sha256()
        try:
            if row.image.strip():
                parts = [text.encode() for text in self._encoded(row)]
            else:
                parts = [read_content(path) for path in self._paths(row)]
        except ValueError as error:
            raise ValueError(self.table.told(row, str(error))) from error
        for part in parts:
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()

    def _encoded(self, row: Row) -> list[str]:
        cell = row.image.strip()
        if len(cell) > REFERENCE_LENGTH:
            return listed(cell)
        other = self.table.image_cell(read_index(cell))
        if other is None:
            raise ValueError(
                f"expected an image in base64 or the index of the row that has it, got "
                f"{printable(cell)!r}, which is no row's"
            )
        if len(other.strip()) <= REFERENCE_LENGTH:
            raise ValueError(f"its image is that of row index {printable(cell)}, which has none")
        return listed(other.strip())

    def _paths(self, row: Row) -> list[Path]:
        folder = self.table.path.parent if self.folder is None else self.folder
        return [folder / path for path in listed(row.image_path.strip())]


def listed(cell: str) -> list[str]:
    """The parts of a cell that holds a Python list, or the cell as the only part."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell]
    try:
        parts = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("expected a list of texts, got something else in brackets") from error
    if not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError("expected a list of texts, got an empty one or other values")
    return parts


def _from_base64(text: str) -> bytes:
    """Line breaks and a ``data:`` address are fine."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"broken base64 of an image ({error}); replace the cell") from error
