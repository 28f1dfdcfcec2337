"""What is in the folders: each file read once, by several threads, and what is there twice.

Two files are near-equal when their difference hashes (64 bits: whether each cell of an 8x9 grey
thumbnail is brighter than its right neighbour) differ in few bits and their mean colours hardly.
What was found is kept in ``images.jsonl``, so that a file is read again only when its size or time
of change is another.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from uae.images.read import ImageError, check_file, open_rgb
from uae.utils.files import sha256_of
from uae.utils.json_lines import JsonLines
from uae.utils.messages import one_line
from uae.utils.metrics import TrainProgress

COLOR_TOLERANCE = 8  # of 255, in each channel of the mean colour
AT_A_TIME = 256


@dataclass(frozen=True, slots=True)
class Picture:
    """One image file."""

    file: Path
    sha256: str
    """Of the file's bytes."""
    width: int
    """Pixels, the right way up."""
    height: int
    dhash: int
    color: tuple[int, ...]
    """Mean red, green, blue."""


class Survey(NamedTuple):
    """What ``survey`` found, in the order of the folder."""

    pictures: list[Picture]
    unreadable: dict[Path, str]


def survey(files: list[Path], folder: Path) -> Survey:
    """Look at all files, those that ``folder/images.jsonl`` does not know yet in threads."""
    pictures, unreadable = [], {}
    lines = JsonLines(folder / "images.jsonl", is_of_survey)
    try:
        for file, row in look_at_all(files, lines):
            if "error" in row:
                unreadable[file] = row["error"]
            else:
                size = row["width"], row["height"]
                pictures.append(
                    Picture(file, row["sha256"], *size, int(row["dhash"], 16), tuple(row["color"]))
                )
    finally:
        lines.close()
    return Survey(pictures, unreadable)


def is_of_survey(value: Any) -> bool:
    """Is it a file's row as ``look`` gives it?"""
    kinds = {name: type(part) for name, part in value.items()} if isinstance(value, dict) else {}
    measured = {"sha256": str, "width": int, "height": int, "dhash": str, "color": list}
    is_complete = kinds.get("error") is str or measured.items() <= kinds.items()
    return kinds.get("path") is str and is_complete


def look_at_all(files: list[Path], lines: JsonLines) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each file with its row, from the list or looked at now."""
    known = {row["path"]: row for _, row in lines}
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        TrainProgress("reading images", len(files)) as progress,
    ):
        for start in range(0, len(files), AT_A_TIME):
            batch = files[start : start + AT_A_TIME]
            rows = pool.map(lambda file: look(file, known), batch)
            for file, row in zip(batch, rows, strict=True):
                if row is not known.get(row["path"]):
                    lines.append(row)
                yield file, row
            progress.update(start + len(batch))


def look(file: Path, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A file's row: hashes and size, or why it can't be read."""
    path = os.path.abspath(file)
    try:
        stat = file.stat()
        state = {"path": path, "bytes": stat.st_size, "changed_ns": stat.st_mtime_ns}
        if path in known and state.items() <= known[path].items():
            return known[path]
        return state | properties(file)
    except ImageError as error:
        return state | {"error": one_line(error).removeprefix(f"{file}: ")}
    except OSError as error:  # may pass: looked at again by the next run
        return {"path": path, "error": one_line(error)}


def properties(file: Path) -> dict[str, Any]:
    check_file(file)
    sha256 = sha256_of(file).hex()
    image = open_rgb(file)
    color = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    size = {"width": image.width, "height": image.height}
    return {"sha256": sha256, **size, "dhash": f"{difference_hash(image):016x}", "color": color}


def difference_hash(image: Image.Image) -> int:
    """64 bits: is a cell brighter than its right neighbour, row by row?"""
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(cells[:, :-1] > cells[:, 1:]).tobytes(), "big")


class Duplicates(NamedTuple):
    """By file, the earlier file that it repeats."""

    equal: dict[Path, Path]
    near: dict[Path, Path]


def find_duplicates(pictures: list[Picture], near_bits: int) -> Duplicates:
    """Of each group of equal or near-equal files all but the first; with ``near_bits`` -1 only
    equal ones.

    Hashes that differ in at most n bits agree in one of n + 1 parts, so only those that share a
    part are compared.
    """
    duplicates = Duplicates({}, {})
    by_content: dict[str, Path] = {}
    by_part: dict[tuple[int, int], list[Picture]] = defaultdict(list)
    for picture in pictures:
        if picture.sha256 in by_content:
            duplicates.equal[picture.file] = by_content[picture.sha256]
            continue
        parts = parts_of(picture.dhash, near_bits + 1)
        others = (other for part in parts for other in by_part[part])
        near = next((other.file for other in others if is_near(other, picture, near_bits)), None)
        by_content[picture.sha256] = near or picture.file
        if near:
            duplicates.near[picture.file] = near
            continue
        for part in parts:
            by_part[part].append(picture)
    return duplicates


def parts_of(dhash: int, num_parts: int) -> list[tuple[int, int]]:
    """The hash's bits in parts, each with its place."""
    edges = [64 * i // num_parts for i in range(num_parts + 1)] if num_parts else []
    return [(low, dhash >> low & (1 << high - low) - 1) for low, high in pairwise(edges)]


def is_near(one: Picture, other: Picture, near_bits: int) -> bool:
    if (one.dhash ^ other.dhash).bit_count() > near_bits:
        return False
    return all(abs(a - b) <= COLOR_TOLERANCE for a, b in zip(one.color, other.color, strict=True))
