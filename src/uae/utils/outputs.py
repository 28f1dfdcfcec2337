"""Where results are to go is looked at before any work, so that hours of it are not lost to a
name."""

from __future__ import annotations

import os
from pathlib import Path


def check_out_file(path: Path) -> None:
    """A ValueError where no result file can be written."""
    if path.is_dir():
        raise ValueError(f"{path}: expected a file to write, got a folder; name a file in it")
    if os.path.lexists(path) and not path.is_file():
        raise ValueError(
            f"{path}: expected a file to write, this is no regular file; give another place"
        )
    check_out_folder(path.parent)


def check_out_folder(path: Path) -> None:
    """A ValueError where no folder can be made, or nothing be written to the one that is there."""
    try:
        folder = next(folder for folder in (path, *path.absolute().parents) if _exists(folder))
    except OSError as error:
        raise ValueError(
            f"{path}: expected a folder to write to: {error.strerror}; give another place"
        ) from error
    if not os.path.isdir(folder):
        raise ValueError(
            f"{path}: expected a folder to write to, {folder} is a file; give another place"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f"{path}: expected a folder to write to, {folder} may not be written; give another "
            "place"
        )


def _exists(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
