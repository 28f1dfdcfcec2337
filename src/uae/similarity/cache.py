"""Embeddings that were computed before, by the content of the image and whatever else they depend
on: a file that scoring again, or another model on the same images, starts from.

It is an SQLite database, so that a process that is killed leaves it whole and several may share it.
It only saves time: where it cannot be opened, read or written, that is said once, and the work goes
on without it. Of several processes that work together the main one alone writes and complains.
"""

from __future__ import annotations

import hashlib
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from uae.similarity.backbones import Backbone
from uae.utils.processes import is_main

MOST_KEYS = 500  # of one query
WAIT_SEC = 30.0  # for another process that writes
_CREATE = "CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
_INSERT = "INSERT OR REPLACE INTO embeddings VALUES (?, ?)"


def key_of(backbone: Backbone, content: bytes) -> bytes:
    """Of the embedding of an image file with this content: it differs whenever that may differ."""
    preprocess = sorted(asdict(backbone.preprocess).items())
    digest = hashlib.sha256(f"{backbone.provenance.fingerprint} {preprocess} ".encode())
    digest.update(hashlib.sha256(content).digest())
    return digest.digest()


class EmbeddingCache:
    """Unit embeddings by key, in one file. Without a file it holds none."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._lock = Lock()  # threads share the connection
        self._database: sqlite3.Connection | None = None
        if file is not None:
            with self._going_on():
                file.parent.mkdir(parents=True, exist_ok=True)
                self._database = sqlite3.connect(file, WAIT_SEC, check_same_thread=False)
                self._database.execute(_CREATE)

    @property
    def is_open(self) -> bool:
        return self._database is not None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """Those that are there, ``[D]`` each."""
        found: dict[bytes, Tensor] = {}
        with self._going_on():
            for start in range(0, len(keys), MOST_KEYS):
                some = keys[start : start + MOST_KEYS]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, value FROM embeddings WHERE key IN ({marks})"
                rows = self._database.execute(query, some) if self._database else ()
                found |= {key: _read(value) for key, value in rows}
        return found

    def keys(self) -> set[bytes]:
        """Of all that is there now."""
        with self._going_on():
            query = "SELECT key FROM embeddings"
            return {key for (key,) in (self._database.execute(query) if self._database else ())}
        return set()

    def put(self, embeddings: Mapping[bytes, Tensor]) -> None:
        """Keep them, ``[D]`` each, all or none."""
        rows = [(key, value.float().cpu().numpy().tobytes()) for key, value in embeddings.items()]
        with self._going_on():
            if self._database is not None and rows and is_main():
                with self._database:
                    self._database.executemany(_INSERT, rows)

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """What fails in here ends the cache, not the work."""
        try:
            with self._lock:
                yield
        except (sqlite3.Error, OSError) as error:
            if is_main():
                print(
                    f"{self.file}: expected a file that keeps embeddings, got {error}; the work "
                    "goes on without it (remove it, or name another by --cache)",
                    file=sys.stderr,
                )
            self._database = None


def _read(value: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(value, dtype=np.float32).copy())
