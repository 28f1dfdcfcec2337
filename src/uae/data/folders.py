"""Which images there are among the files and folders that a user names, and what is made of each is called.

Folders are searched with their subfolders. Hidden files and folders are passed over, and so is what ``uae`` itself
wrote: an output folder carries a mark. What cannot be looked into is named.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from uae.data.images import IMAGE_SUFFIXES, ImageError, shown

OUTPUT_MARK = ".uae_output"
LONGEST_NAME = 200  # bytes; file systems take 255, of which a prefix, a suffix and a temporary name have a part


@dataclass(frozen=True)
class ImageListing:
    """What ``list_images`` found."""

    files: list[Path]
    names: list[Path]
    """Each file's path inside the given folder; inside the folder they share, if several are given."""
    num_ignored: int
    """Files in the given folders whose extension is not an image's."""
    unreadable: list[str]
    """Folders that could not be looked into, and why."""

    def remarks(self) -> list[str]:
        """What is passed over, a line each."""
        ignored = [f"{self.num_ignored} other files ignored"] if self.num_ignored else []
        return ignored + [f"left out: {reason}" for reason in self.unreadable]


def list_images(paths: Iterable[str | Path] | str | Path, outside: Path | None = None) -> ImageListing:
    """The image files among files and folders, in natural order (2.png before 10.png), none from below ``outside``.

    A file given by name is kept whatever its extension.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    found: dict[str, Path] = {}
    num_ignored, unreadable = 0, []
    for path in paths:
        images = [path]
        if path.is_dir():
            folder = search(path, outside)
            images = [file for file in folder.files if file.suffix.lower() in IMAGE_SUFFIXES]
            num_ignored += len(folder.files) - len(images)
            unreadable += folder.unreadable
        elif not os.path.lexists(path):
            raise FileNotFoundError(f"{shown(path)}: expected an image file or a folder of images, found nothing there")
        for file in images:
            found.setdefault(os.path.abspath(file), file)
    if not found:
        where = ", ".join(map(shown, paths)) or "no path given"
        raise ImageError(f"{where}: expected images (.png .jpg .webp …), found none ({num_ignored} other files)"
                         + "".join(f"; {reason}" for reason in unreadable))  # fmt: skip
    shared = os.path.commonpath([os.path.abspath(path if path.is_dir() else path.parent) for path in paths])
    names = [Path(os.path.relpath(file, shared)) for file in found]
    return ImageListing(list(found.values()), names, num_ignored, unreadable)


@dataclass(frozen=True)
class FolderFiles:
    """All files below a folder in natural order, and the folders in it that could not be looked into."""

    files: list[Path]
    unreadable: list[str]


def folder_files(folder: Path) -> list[Path]:
    """All files below a folder in natural order, as ``search`` finds them."""
    return search(folder).files


def search(folder: Path, outside: Path | None = None) -> FolderFiles:
    """Hidden files are left out, and folders that carry the mark of an output or are ``outside``.

    A link to a folder is followed unless that is reached otherwise, or holds the link.
    """
    found = FolderFiles([], [])
    seen = set() if outside is None else {os.path.realpath(outside)}
    waiting = [folder]
    while waiting:  # links last, so that a folder goes by its own name where it has one
        start = waiting.pop(0)
        if start != folder and _holds(start, start.parent):
            found.unreadable.append(f"{shown(start)}: a link to a folder that holds it")
        elif os.path.realpath(start) not in seen:
            waiting += _walk(start, seen, found)
    found.files.sort(key=lambda file: natural_key(file.relative_to(folder)))
    return found


def _walk(start: Path, seen: set[str], found: FolderFiles) -> list[Path]:
    """Add what is below ``start`` and was not seen yet; the links to folders that are met."""
    links: list[Path] = []
    for parent, names, here in os.walk(start, onerror=lambda error: found.unreadable.append(_reason(error))):
        seen.add(os.path.realpath(parent))
        folders = [Path(parent) / name for name in sorted(names)]
        links += [path for path in folders if path.is_symlink() and _is_input(path, set())]
        names[:] = [path.name for path in folders if not path.is_symlink() and _is_input(path, seen)]
        found.files.extend(Path(parent) / name for name in here if not name.startswith("."))
    return links


def _is_input(folder: Path, seen: set[str]) -> bool:
    is_output = os.path.lexists(folder / OUTPUT_MARK)
    return not (folder.name.startswith(".") or is_output or os.path.realpath(folder) in seen)


def _holds(outer: Path, inner: Path) -> bool:
    return Path(os.path.realpath(inner)).is_relative_to(os.path.realpath(outer))


def _reason(error: OSError) -> str:
    return f"{shown(error.filename)}: {error.strerror}"


def natural_key(path: Path) -> tuple[list[list[tuple[bool, int, str]]], str]:
    """Sorts numbers inside names by value; digits of other scripts than ours have none."""
    parts = [re.split(r"([0-9]+)", name.lower()) for name in path.parts]
    return [[_rank(part, place % 2 == 1) for place, part in enumerate(name)] for name in parts], str(path)


def _rank(part: str, is_number: bool) -> tuple[bool, int, str]:
    return not is_number, int(part) if is_number else 0, part


# --- outputs ---------------------------------------------------------------------------------------------------------


def begin_output(folder: Path) -> None:
    """Make the folder and mark it, so that what is written there is no input of a later command."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OUTPUT_MARK).touch()


def output_names(names: Sequence[Path]) -> list[Path]:
    """What to call that which is made of each image: its path without extension, or with it where two would share one.

    No two names are the same.
    """
    chosen = [name.with_suffix("") for name in names]
    while shared := {name for name, count in Counter(chosen).items() if count > 1}:
        chosen = [name if other in shared else other for name, other in zip(names, chosen, strict=True)]
    return [path.with_name(shortened(path.name)) for path in chosen]


def shortened(name: str) -> str:
    """The name, or its beginning and a hash of it if there would be no room for a prefix and a suffix."""
    if len(os.fsencode(normalize("NFD", name))) <= LONGEST_NAME:
        return name
    composed = os.fsencode(normalize("NFC", name))
    return f"{composed[: LONGEST_NAME - 13].decode(errors='ignore')}~{hashlib.sha256(composed).hexdigest()[:12]}"
