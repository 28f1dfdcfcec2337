"""Two folders of images, paired for Unified-Bench: a reconstruction has its source's stem, or ``recon_<stem>``.

Nothing is left out silently: sources without a reconstruction and reconstructions without a source are returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from uae.data.folders import list_images
from uae.data.images import read_image

PREFIX = "recon_"


@dataclass(frozen=True)
class Pairing:
    """Which files belong together."""

    names: list[str]
    """Path of each paired source inside its folder."""
    sources: list[Path]
    """The paired sources."""
    reconstructions: list[Path]
    """Their reconstructions, in the same order."""
    unmatched_sources: list[str]
    """Sources without a reconstruction."""
    unmatched_reconstructions: list[str]
    """Reconstructions without a source."""


class LazyImages(Sequence[Tensor]):
    """Image files as a sequence of ``[3 h w]``, read when asked for; an unreadable one raises ``ImageError`` then."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.files[index])


def pair_folders(source_dir: Path, recon_dir: Path) -> Pairing:
    """Match the images of two folders (and their subfolders) by stem."""
    for folder in (source_dir, recon_dir):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder of images, this is a file")
    if source_dir.resolve() == recon_dir.resolve():
        raise ValueError(f"expected two folders, got {source_dir} as sources and as reconstructions")
    sources, reconstructions = by_stem(source_dir), by_stem(recon_dir)
    matches = {stem: match for stem in sources if (match := find_match(stem, reconstructions, recon_dir)) is not None}
    if not matches:
        raise ValueError(
            f"no pairs: none of the {len(sources)} images in {source_dir} has a reconstruction of the same stem, "
            f"or {PREFIX}<stem>, among the {len(reconstructions)} in {recon_dir} "
            f"(for example {next(iter(sources))} and {next(iter(reconstructions))})"
        )
    paired = set(matches.values())
    return Pairing(
        names=[str(sources[stem].relative_to(source_dir)) for stem in matches],
        sources=[sources[stem] for stem in matches],
        reconstructions=[reconstructions[match] for match in matches.values()],
        unmatched_sources=[str(file.relative_to(source_dir)) for s, file in sources.items() if s not in matches],
        unmatched_reconstructions=[
            str(file.relative_to(recon_dir)) for s, file in reconstructions.items() if s not in paired
        ],
    )


def by_stem(folder: Path) -> dict[Path, Path]:
    """Image files by their path inside the folder without extension; two files of one stem are an error."""
    files: dict[Path, Path] = {}
    for file in list_images(folder).files:
        stem = file.relative_to(folder).with_suffix("")
        if stem in files:
            raise ValueError(f"{folder}: {files[stem].name} and {file.name} have one stem, "
                             "so pairs would be ambiguous; remove one")  # fmt: skip
        files[stem] = file
    return files


def find_match(stem: Path, reconstructions: dict[Path, Path], recon_dir: Path) -> Path | None:
    found = [name for name in (stem, stem.with_name(PREFIX + stem.name)) if name in reconstructions]
    if len(found) > 1:
        raise ValueError(f"{recon_dir}: both {found[0]} and {found[1]} could be the reconstruction of {stem}; "
                         "remove one")  # fmt: skip
    return found[0] if found else None
