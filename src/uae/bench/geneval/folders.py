"""Images of prompts in the folders that GenEval reads, and what there is to say of them.

    DIR/<digits>/metadata.jsonl         the prompt's metadata, one JSON object
    DIR/<digits>/samples/<digits>.png   its images

As officially: other names are passed over; a sample's name need only begin with digits and
``.png`` (``0000.png.bak`` is one); digits are those of any script, in folders' names superscripts
too. Beyond the official code, whatever is missing, odd or cannot be read is a line and stops
nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uae.bench.geneval.metadata import metadata_text
from uae.bench.rewrite.record import TRANSCRIPT
from uae.data.folders import natural_key
from uae.utils.messages import one_line, printable

SAMPLE = re.compile(r"\d+\.png")
OURS = ("settings.json", TRANSCRIPT)  # beside the folders that uae painted into
Check = Callable[[Any, str], None]
"""Of metadata, and where they are: raises what is wrong with them."""


@dataclass(frozen=True)
class Sample:
    """An image, and what it should show."""

    file: Path
    name: str
    """Its path inside the folder of all."""
    metadata: Mapping[str, Any]

    @property
    def prompt_key(self) -> str:
        """The same for every image of one prompt, wherever it lies."""
        return metadata_text(self.metadata)


@dataclass(frozen=True)
class ImageTree:
    """What a folder of images holds."""

    samples: list[Sample] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What should be there and is not, or cannot be read: a line each."""
    remarks: list[str] = field(default_factory=list)
    """What else a reader may want to know: a line each."""


def read_tree(
    root: Path,
    check: Check,
    per_prompt: int | None = None,
    prompts: Sequence[Mapping[str, Any]] | None = None,
) -> ImageTree:
    """All images with their prompts, in natural order.

    per_prompt: how many each prompt should have; None: as many as most have. prompts: those that
    there should be, in whatever order they lie; None: whichever there are.

    Raises:
        ValueError: where there are none.
    """
    tree = ImageTree()
    by_folder: dict[str, list[Sample]] = {}
    names = _sample_folders(root, tree)
    for name in names:
        samples = _read_folder(root, name, check, tree)
        if samples is not None:
            by_folder[name] = samples
    if prompts is None:
        tree.missing.extend(_gaps(names))
    else:
        by_folder = _only_asked(by_folder, prompts, tree)
    tree.samples.extend(sample for samples in by_folder.values() for sample in samples)
    if not tree.samples:
        first = f" ({tree.missing[0]})" if tree.missing else ""
        raise ValueError(
            f"{printable(root)}: expected <digits>/metadata.jsonl and <digits>/samples/"
            f"<digits>.png, found no such image{first}"
        )
    _compare_counts(by_folder, per_prompt, tree)
    _tell_repeated_prompts(by_folder, tree)
    return tree


# --- one folder ----------------------------------------------------------------------------------


def _sample_folders(root: Path, tree: ImageTree) -> list[str]:
    if not root.is_dir():
        raise ValueError(f"{printable(root)}: expected a folder of images, found no folder there")
    names = _natural(os.listdir(root))
    folders = [name for name in names if name.isdigit() and (root / name).is_dir()]
    others = set(names) - {*folders, *OURS}
    tree.remarks.extend(
        f"{printable(name)}: passed over, expected a folder whose name is digits"
        for name in _natural(others)
        if not name.startswith(".")
    )
    return folders


def _read_folder(root: Path, name: str, check: Check, tree: ImageTree) -> list[Sample] | None:
    """Its samples; None where its metadata or its names cannot be read."""
    folder = root / name
    try:
        metadata = _read_metadata(folder / "metadata.jsonl", name, check)
        files = _natural(os.listdir(folder / "samples"))
    except OSError as error:
        place = printable(Path(str(error.filename)).relative_to(root))
        tree.missing.append(f"{place}: {error.strerror}; images of its folder are not scored")
        return None
    except ValueError as error:
        tree.missing.append(f"{one_line(error)}; images of its folder are not scored")
        return None
    samples = []
    for file in files:
        path = folder / "samples" / file
        if SAMPLE.match(file) and path.is_file():
            samples.append(Sample(path, f"{name}/samples/{file}", metadata))
        elif not file.startswith("."):
            place = printable(path.relative_to(root))
            tree.remarks.append(f"{place}: passed over, expected a file called <digits>.png")
    return samples


def _read_metadata(file: Path, name: str, check: Check) -> dict[str, Any]:
    place = f"{printable(name)}/{file.name}"
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{place}: expected one JSON object in UTF-8 ({one_line(error)})"
        ) from error
    check(metadata, place)
    return metadata


def _natural(names: Sequence[str] | set[str]) -> list[str]:
    return sorted(names, key=lambda name: natural_key(Path(name)))


# --- all together --------------------------------------------------------------------------------


def _gaps(folders: Sequence[str]) -> Iterator[str]:
    """Numbers from 0 to the last that have no folder, where folders are numbered so."""
    numbers = {int(name) for name in folders if name.isdecimal()}
    if 0 not in numbers or max(numbers) > 2 * len(numbers) + 100:
        return
    width = min(len(name) for name in folders)
    for number in sorted(set(range(max(numbers))) - numbers):
        yield f"{number:0{width}}: no folder of this number"


def _only_asked(
    by_folder: Mapping[str, list[Sample]], prompts: Sequence[Mapping[str, Any]], tree: ImageTree
) -> dict[str, list[Sample]]:
    """Folders of these prompts; prompts without a folder and folders without a prompt are told."""
    asked = {_canonical(prompt): prompt["prompt"] for prompt in prompts}
    kept, found = {}, set()
    for folder, samples in by_folder.items():
        key = _canonical(samples[0].metadata) if samples else None
        if key in asked:
            kept[folder] = samples
            found.add(key)
        else:
            tree.remarks.append(f"{folder}: not scored, its prompt is not asked for")
    tree.missing.extend(f"no image of {text!r}" for key, text in asked.items() if key not in found)
    return kept


def _canonical(metadata: Mapping[str, Any]) -> str:
    """Independent of the order of keys."""
    return json.dumps(metadata, sort_keys=True)


def _compare_counts(
    by_folder: Mapping[str, list[Sample]], per_prompt: int | None, tree: ImageTree
) -> None:
    """Tell folders with fewer or more images than asked for, or than most have."""
    counts = {folder: len(samples) for folder, samples in by_folder.items()}
    usual = per_prompt or max(Counter(counts.values()).items(), key=lambda pair: pair[::-1])[0]
    for folder, number in counts.items():
        if number < usual:
            tree.missing.append(f"{folder}: {number} images, expected {usual}")
        elif number > usual:
            tree.remarks.append(f"{folder}: {number} images, expected {usual}; all are scored")


def _tell_repeated_prompts(by_folder: Mapping[str, list[Sample]], tree: ImageTree) -> None:
    first: dict[str, str] = {}
    for folder, samples in by_folder.items():
        if not samples:
            continue
        owner = first.setdefault(samples[0].prompt_key, folder)
        if owner != folder:
            tree.remarks.append(f"{folder}: the prompt of {owner} again; they count as one prompt")
