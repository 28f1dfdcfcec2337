"""Files of JSON lines that grow as work is done, so that what is done is not done again."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from uae.utils.files import disk_error
from uae.utils.lock import try_lock


class JsonLines:
    """A file of JSON lines that one process appends to; a line that a kill left half written is
    dropped.

    is_whole: whether a value is one of those that are written here.
    """

    def __init__(
        self, path: Path, is_whole: Callable[[Any], bool] = lambda value: isinstance(value, dict)
    ) -> None:
        self.path, self.is_whole = path, is_whole
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise disk_error(path.name, path.parent, error) from error
        self._lock()
        self._drop_torn_line()
        self._size = os.fstat(self._descriptor).st_size

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Where each line begins, and its value."""
        start = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    value: Any = json.loads(line)
                except (ValueError, RecursionError):
                    value = None
                if not self.is_whole(value):
                    raise ValueError(f"{self.path}: line {number} is damaged; remove that line")
                yield start, value
                start += len(line)

    @property
    def is_empty(self) -> bool:
        return self._size == 0

    def append(self, value: dict[str, Any]) -> int:
        """Write a line at once; where it begins."""
        # ASCII, as file names need not be text
        line = json.dumps(value, allow_nan=False).encode() + b"\n"
        start = self._size
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._descriptor, start)
            note = "Every line written before is safe: the same command goes on from there. "
            raise disk_error(self.path.name, self.path.parent, error, note) from error
        self._size += len(line)
        return start

    def read(self, start: int) -> dict[str, Any]:
        """The line that begins there."""
        with open(self.path, "rb") as file:
            file.seek(start)
            return json.loads(file.readline())

    def close(self) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def _lock(self) -> None:
        if not try_lock(self._descriptor):
            os.close(self._descriptor)
            raise ValueError(
                f"{self.path} is in use: wait for the other process, or give another folder"
            )

    def _drop_torn_line(self) -> None:
        end = os.fstat(self._descriptor).st_size
        while end:
            start = max(end - 65536, 0)
            newline = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            end = start + newline + 1
            if newline >= 0:
                break
        os.ftruncate(self._descriptor, end)
