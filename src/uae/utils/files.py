"""Files that are whole or not there, and one message from a disk that fails."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from uae.utils.processes import is_main, wait


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write the file completely or not at all, folders included; a reader never sees half of it."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)
    except OSError as error:
        raise disk_error(path.name, path.parent, error) from error


def appear(folder: Path, write: Callable[[Path], Any]) -> None:
    """``write(folder)``, so that the folder is there whole or not at all; one that was there gives
    way. Of several processes the main one writes, and the others wait."""
    if is_main():
        _appear(folder, write)
    wait()


def _appear(folder: Path, write: Callable[[Path], Any]) -> None:
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        write(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.replace(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise disk_error(folder.name, folder.parent, error) from error


def atomic_write_json(path: Path | str, value: Any) -> None:
    """``atomic_write_text`` of strict, indented JSON; numbers that are not finite become null."""
    atomic_write_text(path, json.dumps(json_ready(value), indent=2, allow_nan=False) + "\n")


def json_ready(value: Any) -> Any:
    """The same value with null for nan and inf, and paths as text, which JSON cannot express."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def disk_error(what: str, where: Path, error: BaseException, reassurance: str = "") -> OSError:
    """One message from whichever library failed to write: what, where, why, and what to do."""
    reason = getattr(error, "strerror", None) or str(error)
    existing = next(
        (folder for folder in (where, *where.absolute().parents) if folder.exists()), None
    )
    free = f"{shutil.disk_usage(existing).free / 1e6:,.0f} MB free" if existing else "no such disk"
    message = f"could not write {what} to {where}: {reason} ({free}). {reassurance}"
    return OSError(
        f"{message}Free some space or make the folder writable, or give another output folder."
    )


def replace_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        fsync(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def fsync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> bytes:
    """Of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
