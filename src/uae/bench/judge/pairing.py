"""What is compared: of each source image the caption or the picture, or both, of two sides."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from uae.bench.captions import name_and_caption
from uae.bench.unified.pairing import pair_folders
from uae.data.folders import list_images, output_names
from uae.images.read import ImageError, check_file, open_rgb
from uae.utils.messages import one_line


class Side(NamedTuple):
    """What one candidate made of a source."""

    caption: str | None
    image: Path | None


@dataclass(frozen=True)
class Pair:
    """One comparison."""

    name: str
    """Path of the source inside its folder."""
    source: Path
    a: Side
    b: Side


class Contest(NamedTuple):
    """All comparisons, and what cannot be compared."""

    pairs: list[Pair]
    left_out: dict[str, str]
    """By source, why."""
    remarks: list[str]
    """What else was passed over."""


@dataclass(frozen=True)
class Entries:
    """Where the candidates' work is; captions, images or both, the same of both sides."""

    source: Path
    images_a: Path | None = None
    images_b: Path | None = None
    captions_a: Path | None = None
    captions_b: Path | None = None

    def check(self) -> None:
        """A ValueError for sides that cannot be compared."""
        images = (self.images_a is None) + (self.images_b is None)
        captions = (self.captions_a is None) + (self.captions_b is None)
        if 1 in (images, captions) or images == captions == 2:
            raise ValueError(
                "expected the same of both sides: --images-a DIR and --images-b DIR, or "
                "--captions-a FILE and --captions-b FILE, or all four"
            )

    def sources(self) -> dict[str, Path]:
        """All of them, by name; pictures of the candidates are none, even in a folder inside."""
        listing = list_images(self.source)
        others = [d.resolve() for d in (self.images_a, self.images_b) if d is not None]
        files = zip(listing.names, listing.files, strict=True)
        return {
            str(name): file
            for name, file in files
            if not any(file.resolve().is_relative_to(folder) for folder in others)
        }

    def gather(self, names: Collection[str]) -> Contest:
        """Match the work of both sides by the names of the sources, for these of them."""
        self.check()
        files = self.sources()
        found: dict[str, Mapping[str, Any]] = {}
        remarks: list[str] = []
        for side in ("a", "b"):
            images, captions = getattr(self, f"images_{side}"), getattr(self, f"captions_{side}")
            if images is not None:
                found[f"image of {side}"] = _matched(self.source, images, remarks)
            if captions is not None:
                read = read_captions(captions, [Path(name) for name in files])
                remarks += read.remarks
                found[f"caption of {side}"] = read.captions
        return _contest({name: files[name] for name in names}, found, remarks)


def _matched(source: Path, folder: Path, remarks: list[str]) -> dict[str, Path]:
    """A side's pictures by source."""
    pairing = pair_folders(source, folder)
    extra = pairing.unmatched_reconstructions
    remarks += [*pairing.remarks, *(f"{folder}: {name} belongs to no source" for name in extra)]
    return dict(zip(pairing.names, pairing.reconstructions, strict=True))


def _contest(
    files: Mapping[str, Path], found: Mapping[str, Mapping[str, Any]], remarks: list[str]
) -> Contest:
    contest = Contest([], {}, remarks)
    for name, file in files.items():
        has = {what: by_name[name] for what, by_name in found.items() if name in by_name}
        missing = [what for what in found if what not in has]
        images = [file, *(part for part in has.values() if isinstance(part, Path))]
        problem = f"no {', no '.join(missing)}" if missing else unreadable(images)
        if problem:
            contest.left_out[name] = problem
            continue
        sides = (Side(has.get(f"caption of {s}"), has.get(f"image of {s}")) for s in "ab")
        contest.pairs.append(Pair(name, file, *sides))
    if not contest.pairs:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(contest.left_out.items())[:3])
        raise ValueError(
            f"expected at least one source with the work of both sides, none of {len(files)} has "
            f"it: {reasons}"
        )
    return contest


def unreadable(files: Sequence[Path]) -> str | None:
    """Why one of the images cannot be shown; None if all can."""
    for file in files:
        try:
            check_file(file)
            open_rgb(file)
        except (ImageError, OSError) as error:
            return one_line(error)
    return None


# --- captions ------------------------------------------------------------------------------------


class Captions(NamedTuple):
    """By source."""

    captions: dict[str, str]
    remarks: list[str]


def read_captions(place: Path, sources: Sequence[Path]) -> Captions:
    """Of a JSONL file with an ``image`` and a ``caption`` in each line, or a folder of NAME.txt as
    ``uae reconstruct`` writes it."""
    if place.is_dir():
        files = {str(s): place / o for s, o in zip(sources, output_names(sources), strict=True)}
        texts = {name: Path(f"{file}.txt") for name, file in files.items()}
        found = {name: file for name, file in texts.items() if file.is_file()}
        return Captions({name: _text(file) for name, file in found.items()}, [])
    if not place.is_file():
        raise ValueError(
            f"{place}: expected a .jsonl file of captions or a folder of NAME.txt, found nothing"
        )
    return _read_rows(place, sources)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace").strip()


def _read_rows(file: Path, sources: Sequence[Path]) -> Captions:
    """A row belongs to the source of its name, or else of its name without extension."""
    by_name = {str(source): str(source) for source in sources}
    stems = [str(source.with_suffix("")) for source in sources]
    by_stem = {s: str(n) for s, n in zip(stems, sources, strict=True) if stems.count(s) == 1}
    read, twice = Captions({}, []), set()
    # not splitlines, which ends lines at characters that captions may hold
    for number, line in enumerate(_text(file).split("\n"), 1):
        row = _row(line)
        if row is None:
            read.remarks.append(
                f'{file}: line {number}: expected {{"image": NAME, "caption": TEXT}}, got '
                f"{line[:40]!r}; left out"
            )
            continue
        name, caption = row
        source = by_name.get(name) or by_stem.get(str(Path(name).with_suffix("")))
        if source is None:
            read.remarks.append(f"{file}: line {number}: {name!r} belongs to no source; left out")
        elif read.captions.setdefault(source, caption) != caption:
            twice.add(source)
    for source in sorted(twice):
        del read.captions[source]
        read.remarks.append(f"{file}: {source} has several captions; left out")
    return read


def _row(line: str) -> tuple[str, str] | None:
    """Name and caption of a line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    found = name_and_caption(value)
    if found is None:
        return None
    name, caption = found
    return name, caption.encode(errors="replace").decode().strip()  # no half emoji can be sent
