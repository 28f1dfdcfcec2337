"""Which files a run learns from: a resumed run names what was added, removed or changed since it
was started.

A file is its name below the folder that was given, its size and a hash of its first and last bytes;
not its time or where the folder lies, so data may be copied or moved. Of more than ``MAX_HASHED``
files only names and sizes are compared: to open each would take minutes on a slow disk.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from uae.utils.files import disk_error
from uae.utils.processes import is_main

FILE_NAME = "data_files.jsonl.gz"
MAX_HASHED = 20_000
ENDS = 4096  # bytes that are hashed at either end
MAX_NAMED = 5
AT_A_TIME, NUM_THREADS = 500, 16
WHEN_TO_MEND = "(before a new run: this one needs its files as they are)"
"""To be said where a message of a run asks for a file to be mended, which would end it."""


class FileState(NamedTuple):
    """A file's size, -1 if it cannot be read, and hash, empty if it was not opened."""

    size: int
    hash: str = ""


class Inventory:
    """Files by name."""

    def __init__(self, states: dict[str, FileState]) -> None:
        self.states = states

    @classmethod
    def of(cls, files: Sequence[Path], roots: Sequence[Path]) -> Inventory:
        """Files below ``roots``, looked at now."""
        names = _names(files, roots)
        is_hashed = len(files) <= MAX_HASHED
        parts = [files[i : i + AT_A_TIME] for i in range(0, len(files), AT_A_TIME)]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            results = pool.map(lambda part: [_state(file, is_hashed) for file in part], parts)
            states = [state for part in results for state in part]
        return cls(dict(zip(names, states, strict=True)))

    def pack(self) -> bytes:
        """Compressed lines of name, size and hash, the same for the same files."""
        lines = (json.dumps([name, *state]) for name, state in sorted(self.states.items()))
        return gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)

    @classmethod
    def unpack(cls, packed: bytes) -> Inventory:
        rows = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
        if not rows:
            raise ValueError("expected a line for each file, got none")
        return cls({name: FileState(*state) for name, *state in rows})

    def check(self, before: Inventory, kind: str) -> None:
        """A ValueError that names the files of a run's start, ``before``, that are others now."""
        then, now = before.states, self.states
        changed = [name for name in now if name in then and _differs(then[name], now[name])]
        changes = {
            "added": [name for name in now if name not in then],
            "removed": [name for name in then if name not in now],
            "changed": changed,
        }
        if any(changes.values()):
            parts = (f"{change}: {_some(names)}" for change, names in changes.items() if names)
            raise ValueError(
                f"cannot resume, the {kind} are not those that the run was started with. "
                f"{'; '.join(parts)}. Put them back as they were, or give another output folder "
                "for a new run"
            )


def check_unchanged(
    folder: Path, inventory: Inventory, kind: str, file_name: str = FILE_NAME
) -> None:
    """Keep the inventory with a new run in ``folder``; compare it with that of a run to be resumed.

    A run that was begun before inventories were kept has none, and goes on.
    """
    path = folder / file_name
    is_resumed = any(folder.glob("checkpoints/step_*"))
    if is_resumed and path.exists():
        inventory.check(_read(path), kind)
    elif not is_resumed and is_main():
        _write(path, inventory)


def _read(path: Path) -> Inventory:
    try:
        return Inventory.unpack(path.read_bytes())
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the list of the run's data files, it is damaged; remove it to go on "
            "without comparing them"
        ) from error


def _write(path: Path, inventory: Inventory) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(inventory.pack())
        unfinished.replace(path)
    except OSError as error:
        raise disk_error(path.name, path.parent, error) from error


def _names(files: Sequence[Path], roots: Sequence[Path]) -> list[str]:
    """Below the first root that holds each file; with several roots after that one's number and
    name."""
    labels = [
        f"{number}:{root.name}/" if len(roots) > 1 else "" for number, root in enumerate(roots, 1)
    ]
    return [_name(file, roots, labels) for file in files]


def _name(file: Path, roots: Sequence[Path], labels: Sequence[str]) -> str:
    for root, label in zip(roots, labels, strict=True):
        if file.is_relative_to(root):
            return label + (file.relative_to(root).as_posix() if file != root else file.name)
    return str(file)


def _state(file: Path, is_hashed: bool) -> FileState:
    try:
        if not file.is_file():  # a pipe would be waited for
            return FileState(-1)
        size = file.stat().st_size
        return FileState(size, _hash(file, size) if is_hashed else "")
    except OSError:
        return FileState(-1)


def _hash(file: Path, size: int) -> str:
    digest = hashlib.blake2b(digest_size=8)
    with open(file, "rb", buffering=0) as stream:
        for start in (0, max(0, size - ENDS)):
            stream.seek(start)
            digest.update(stream.read(ENDS))
    return digest.hexdigest()


def _differs(before: FileState, now: FileState) -> bool:
    return before.size != now.size or bool(before.hash and now.hash and before.hash != now.hash)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
