"""A reproducible draw of test images: the same content and seed give the same list, whatever files
are called and in whatever order a disk lists them.

Images are ordered by sha256("SEED KEY"), with the hash of the file's bytes as the key, and the
first are taken; equal files count once. An open set is drawn from by its ids in the same way.
A list is a text file with a line ``SHA256  NAME`` for each image, as ``sha256sum --check`` reads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from uae.utils.files import sha256_of

LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def draw(keys: Iterable[str], number: int, seed: int) -> list[str]:
    """``number`` of the different keys, or all if there are fewer, in the order of the draw."""

    def order(key: str) -> str:
        return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()

    return sorted(set(keys), key=order)[:number]


def hashes_of(files: Mapping[str, Path]) -> dict[str, str]:
    """Of each file's bytes, by name; a file that cannot be read has none."""
    hashes = {}
    for name, file in files.items():
        try:
            hashes[name] = sha256_of(file).hex()
        except OSError:
            continue
    return hashes


def draw_images(files: Mapping[str, Path], number: int, seed: int) -> dict[str, str]:
    """Names with the hashes of their content, in the order of the draw; of equal files the first
    name."""
    name_of: dict[str, str] = {}
    for name, digest in sorted(hashes_of(files).items()):
        name_of.setdefault(digest, name)
    return {name_of[digest]: digest for digest in draw(name_of, number, seed)}


def list_text(images: Mapping[str, str]) -> str:
    """A list as it is written."""
    return "".join(f"{digest}  {name}\n" for name, digest in images.items())


def read_list(file: Path) -> list[str]:
    """The hashes of a list.

    Raises:
        ValueError: for a line of another form.
    """
    digests = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(
                f"{file}: line {number}: expected SHA256, two spaces and a name, got "
                f"{line[:40]!r}; give a list that uae bench judge wrote"
            )
        digests.append(match[1])
    return digests


def find_images(files: Mapping[str, Path], digests: Iterable[str]) -> dict[str, str]:
    """The images of a list among files, by content.

    Raises:
        ValueError: where any is missing.
    """
    names: dict[str, str] = {}
    for name, digest in sorted(hashes_of(files).items()):
        names.setdefault(digest, name)
    wanted = list(digests)
    if missing := [digest for digest in wanted if digest not in names]:
        raise ValueError(
            f"expected all {len(wanted)} images of the list, {len(missing)} are not among the "
            f"sources, such as {missing[0][:12]}…; give the folder that the list was drawn from"
        )
    return {names[digest]: digest for digest in wanted}
