"""One process a folder: two that train in the same one would destroy each other's run.

The system holds the lock (``flock``), so it ends with the process that has it, however that ends.
The file only carries it and says whose it is; one that a kill left behind locks nobody out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from uae.utils.files import disk_error
from uae.utils.processes import is_main

FILE_NAME = ".run.lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: set[Path] = set()  # folders that this process has locked


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is this process's alone as long as the context lasts; it is made where it is
    missing, and goes again if nothing came of it.

    What the process has locked already stays so until the outermost context ends. Of several
    processes that work together the main one locks it for all.

    Raises:
        ValueError: another process has it; the message names that process.
    """
    place = folder.resolve()
    if place in _held or not is_main():
        yield
        return
    is_new = not folder.exists()
    descriptor = _acquire(folder)
    _held.add(place)
    try:
        yield
    finally:
        _held.remove(place)
        if _is_current(descriptor, folder / FILE_NAME):
            with suppress(OSError):  # the folder may not be written any more, or not be empty
                (folder / FILE_NAME).unlink()
                if is_new:
                    folder.rmdir()
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; False where another process has it. A disk that knows
    no locks refuses nobody."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    return True


def _acquire(folder: Path) -> int:
    """The open, locked file, with this process's name in it."""
    path = folder / FILE_NAME
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise disk_error(path.name, folder, error) from error
        try:
            if not try_lock(descriptor):
                raise ValueError(
                    f"{folder} is in use by {_owner(descriptor)}: wait until it has ended, or give "
                    "another folder"
                )
            if _is_current(descriptor, path):
                _sign(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner ended and removed it between opening and locking


def _is_current(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that is found under its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    with suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _owner(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
