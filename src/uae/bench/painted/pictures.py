"""The pictures of a benchmark's prompts, made by a model here or elsewhere.

    DIR/00000/metadata.jsonl, DIR/00000/samples/00000.png …   as ``bench/generate.py`` writes them
    DIR/NAME.png                                              a file whose name says the prompt

In folders of the first kind the prompt counts, not the number, so that another order of prompts
does not matter. Nothing is passed over silently: prompts without a picture and pictures without a
prompt are told.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from uae.bench.api import Answers
from uae.bench.generate import PlacedPrompt, PromptImages
from uae.bench.rewrite.record import Rewriting, rewriting_of
from uae.data.folders import natural_key
from uae.images.read import IMAGE_SUFFIXES, ImageError, open_rgb
from uae.utils.files import sha256_of
from uae.utils.messages import printable

METADATA = "metadata.jsonl"
Rows = Mapping[str, Mapping[str, Any]]  # by name; each has a ``prompt``


@dataclass(frozen=True)
class Pictures:
    """Which files show which prompt."""

    files: dict[str, list[Path]]
    """By the prompt's name, in the benchmark's order."""
    problems: dict[str, str] = field(default_factory=dict)
    """Prompts without a picture, or with one that cannot be read, and why."""
    remarks: list[str] = field(default_factory=list)
    """What else lies there: pictures of no prompt, and the same picture twice."""

    @property
    def rewriting(self) -> Rewriting | None:
        """How their prompts were rewritten, if they were."""
        return rewriting_of(file for files in self.files.values() for file in files)


def find_pictures(folder: Path, rows: Rows, name_of_file: Callable[[str], str]) -> Pictures:
    """The pictures in a folder of either kind.

    name_of_file: the prompt's name by that of a file.

    Raises:
        ValueError: when there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of pictures, found none there")
    found: dict[str, list[Path]] = defaultdict(list)
    remarks = []
    for path in sorted(folder.iterdir(), key=natural_key):
        if path.name.startswith("."):
            continue
        try:
            if path.is_dir():
                for name in _names_of_folder(path, rows):
                    found[name] += _images_in(path / "samples")
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                found[_known(name_of_file(path.name), rows)].append(path)
        except ValueError as error:
            remarks.append(f"passed over {printable(path.name)}: {error}")
    return checked({name: found[name] for name in rows}, remarks)


def painted_pictures(
    task: PromptImages, answers: Answers[PlacedPrompt], names: Iterable[str]
) -> Pictures:
    """What a model painted; names are in the order of the task's prompts."""
    files: dict[str, list[Path]] = {}
    left_out: dict[str, str] = {}
    for name, item in zip(names, answers.items, strict=True):
        files[name] = task.images_of(item) if item in answers.finished else []
        if item in answers.left_out:
            left_out[name] = answers.left_out[item]
    pictures = checked(files, may_repeat=True)
    return replace(pictures, problems=pictures.problems | left_out)


def checked(
    files: Mapping[str, list[Path]], remarks: Iterable[str] = (), may_repeat: bool = False
) -> Pictures:
    """Those that can be read. A prompt is left out whole where one of its pictures is broken.

    may_repeat: a model painted them, and may paint the same twice; else the same bytes count once
    for a prompt.
    """
    good: dict[str, list[Path]] = {}
    problems: dict[str, str] = {}
    told = list(remarks)
    for name, paths in files.items():
        try:
            kept = paths if may_repeat else _each_once(paths, told)
            for path in kept:
                open_rgb(path)
        except (ImageError, OSError) as error:
            problems[name] = str(error)
            continue
        if kept:
            good[name] = kept
        else:
            problems[name] = "no picture"
    return Pictures(good, problems, told)


def _each_once(paths: Iterable[Path], told: list[str]) -> list[Path]:
    """Files of different bytes; the others are told."""
    distinct: dict[bytes, Path] = {}
    for path in paths:
        first = distinct.setdefault(sha256_of(path), path)
        if first is not path:
            told.append(f"{printable(path.name)}: the same as {first.name}, counted once")
    return list(distinct.values())


def _images_in(folder: Path) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted((file for file in files if _is_image(file)), key=natural_key)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def _names_of_folder(folder: Path, rows: Rows) -> list[str]:
    """Of the prompts that its metadata name: all of the same text."""
    try:
        row = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"a folder without {METADATA}") from None
    except (ValueError, OSError, RecursionError):
        raise ValueError(f"expected one JSON object in {METADATA}") from None
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str):
        raise ValueError(f"expected a prompt in {METADATA}")
    if row.get("item_id") in rows:
        return [row["item_id"]]
    names = [name for name, each in rows.items() if each["prompt"] == prompt.strip()]
    if not names:
        raise ValueError(f"its prompt is none of the benchmark's ({prompt.strip()[:60]!r})")
    return names


def _known(name: str, rows: Rows) -> str:
    if name not in rows:
        raise ValueError(f"no prompt is called {printable(name)}")
    return name
