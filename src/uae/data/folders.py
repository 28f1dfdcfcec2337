"""Which images the files and folders of a user hold, and how an image's outputs are named.

Folders are searched with their subfolders. Hidden files and folders are passed over, and so is what
``uae`` itself painted: a hidden file beside it notes that. What cannot be looked into is named.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from uae.images.read import IMAGE_SUFFIXES, ImageError
from uae.utils.files import atomic_write_text
from uae.utils.messages import printable

OUTPUTS = ".uae_outputs.json"
PREFIX = "recon_"  # of a reconstruction's name
# bytes; file systems take 255, of which a prefix, a suffix and a temporary name have a part
LONGEST_NAME = 200


@dataclass(frozen=True)
class ImageListing:
    """The images among files and folders."""

    files: list[Path]
    names: list[Path]
    """Each file's path inside the given folder; inside the folder they share, if several are
    given."""
    num_ignored: int
    """Files in the given folders whose extension is not an image's."""
    unreadable: list[str]
    """Folders that could not be looked into, and why."""

    def remarks(self) -> list[str]:
        """What is passed over, a line each."""
        ignored = [f"{self.num_ignored} other files ignored"] if self.num_ignored else []
        return ignored + [f"left out: {reason}" for reason in self.unreadable]


def list_images(
    paths: Iterable[str | Path] | str | Path, out: Path | None = None, takes_outputs: bool = False
) -> ImageListing:
    """The image files among files and folders, in natural order (2.png before 10.png).

    A file given by name is kept whatever its extension. Folders are searched without what is in
    ``out``; a folder's own outputs are taken if it ``takes_outputs``, or holds no other image.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    files: dict[str, Path] = {}
    num_ignored, unreadable = 0, []
    for path in paths:
        images = [path]
        if path.is_dir():
            folder = Search(path, out, takes_outputs)
            if not folder.images:
                folder = Search(path, out, takes_outputs=True)
            images = folder.images
            num_ignored += len(folder.files) - len(images)
            unreadable += folder.unreadable
        elif not os.path.lexists(path):
            raise FileNotFoundError(
                f"{printable(path)}: expected an image file or a folder of images, found nothing "
                "there"
            )
        for file in images:
            files.setdefault(os.path.abspath(file), file)
    if not files:
        places = ", ".join(map(printable, paths)) or "no path given"
        raise ImageError(
            f"{places}: expected images (.png .jpg .webp …), found none "
            f"({num_ignored} other files)" + "".join(f"; {reason}" for reason in unreadable)
        )
    folders = [os.path.abspath(path if path.is_dir() else path.parent) for path in paths]
    shared = os.path.commonpath(folders)
    names = [Path(os.path.relpath(file, shared)) for file in files]
    return ImageListing(list(files.values()), names, num_ignored, unreadable)


def folder_files(folder: Path) -> list[Path]:
    """All files below a folder in natural order, as ``Search`` finds them."""
    return Search(folder, takes_outputs=True).files


class Search:
    """All ``files`` below a folder in natural order, and the folders in it that are ``unreadable``,
    with the reason.

    Hidden ones are left out, and so are outputs that were noted (unless it ``takes_outputs`` of
    that folder itself), or stand in ``out``. A link to a folder is followed unless that is reached
    otherwise, or holds the link.
    """

    def __init__(self, folder: Path, out: Path | None = None, takes_outputs: bool = False) -> None:
        self.files: list[Path] = []
        self.unreadable: list[str] = []
        self._searched: set[str] = set()
        self._outputs = set() if out is None else {os.path.realpath(out)} | noted_outputs(out)
        self._own = noted_outputs(folder) - self._outputs if takes_outputs else set()
        links = self._walk(folder)
        while links:  # last, so that a folder goes by its own name where it has one
            link = links.pop(0)
            if Path(os.path.realpath(link.parent)).is_relative_to(os.path.realpath(link)):
                self.unreadable.append(f"{printable(link)}: a link to a folder that holds it")
            elif os.path.realpath(link) not in self._searched | self._outputs:
                links += self._walk(link)
        self.files.sort(key=lambda file: natural_key(file.relative_to(folder)))

    @property
    def images(self) -> list[Path]:
        """Those whose extension is an image's."""
        return [file for file in self.files if file.suffix.lower() in IMAGE_SUFFIXES]

    def _walk(self, start: Path) -> list[Path]:
        """Add what is below ``start`` and was not seen yet; the links to folders that are met."""
        links: list[Path] = []
        for parent, names, files in os.walk(start, onerror=self._add_unreadable):
            place = os.path.realpath(parent)
            self._searched.add(place)
            if OUTPUTS in files:
                self._outputs |= noted_outputs(Path(parent)) - self._own
            folders = [Path(parent) / name for name in sorted(names) if self._is_input(place, name)]
            links += [folder for folder in folders if os.path.islink(folder)]
            own = [folder for folder in folders if not os.path.islink(folder)]
            names[:] = [f.name for f in own if os.path.realpath(f) not in self._searched]
            self.files += [Path(parent) / name for name in files if self._is_input(place, name)]
        return links

    def _is_input(self, place: str, name: str) -> bool:
        return not name.startswith(".") and os.path.join(place, name) not in self._outputs

    def _add_unreadable(self, error: OSError) -> None:
        self.unreadable.append(f"{printable(error.filename)}: {error.strerror}")


def natural_key(path: Path) -> tuple[list[list[tuple[bool, int, str]]], str]:
    """Sorts numbers inside names by value; digits of other scripts than ours have none."""
    parts = [re.split(r"([0-9]+)", name.lower()) for name in path.parts]
    key = [
        [(i % 2 == 0, int(part) if i % 2 else 0, part) for i, part in enumerate(name)]
        for name in parts
    ]
    return key, str(path)


# --- outputs -------------------------------------------------------------------------------------


def note_outputs(folder: Path, outputs: Iterable[Path]) -> None:
    """Make the folder and note what is written there, files or folders of them: no later command's
    input."""
    place = os.path.realpath(folder)
    places = {os.path.join(place, output) for output in outputs} | noted_outputs(folder)
    paths = sorted(os.path.relpath(output, place) for output in places)
    atomic_write_text(folder / OUTPUTS, json.dumps(paths, indent=0))


def noted_outputs(folder: Path) -> set[str]:
    """Real paths of what was noted."""
    try:
        paths = json.loads((folder / OUTPUTS).read_text())
        return {os.path.join(os.path.realpath(folder), os.path.normpath(path)) for path in paths}
    except (OSError, ValueError, TypeError):  # none, or somebody else's
        return set()


def output_names(names: Sequence[Path]) -> list[Path]:
    """Of each image its path without extension, or with it where two would share one.

    No two names are the same.
    """
    outputs = [name.with_suffix("") for name in names]
    while shared := {output for output, count in Counter(outputs).items() if count > 1}:
        pairs = zip(names, outputs, strict=True)
        outputs = [name if output in shared else output for name, output in pairs]
    return [output.with_name(shortened(output.name)) for output in outputs]


def shortened(name: str) -> str:
    """The name, or its beginning and a hash of it if there would be no room for a prefix and a
    suffix."""
    if len(os.fsencode(normalize("NFD", name))) <= LONGEST_NAME:
        return name
    composed = os.fsencode(normalize("NFC", name))
    beginning = composed[: LONGEST_NAME - 13].decode(errors="ignore")
    return f"{beginning}~{hashlib.sha256(composed).hexdigest()[:12]}"
