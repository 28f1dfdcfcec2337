"""Two folders of images, paired for Unified-Bench: a reconstruction is called as its source, or
``recon_`` before that.

A name with its extension, or with ``.png`` after it, counts before a name without; one that is the
same byte for byte before one that is the same text, composed or decomposed. Nothing is left out
silently: sources without a reconstruction and reconstructions without a source are returned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from torch import Tensor

from uae.data.folders import PREFIX, ImageListing, list_images, shortened
from uae.images.read import read_content, read_image
from uae.utils.messages import printable


@dataclass(frozen=True)
class Pairing:
    """Which files belong together."""

    names: list[str]
    """Path of each paired source inside its folder."""
    sources: list[Path]
    """The paired sources."""
    reconstructions: list[Path]
    """Their reconstructions, in the same order."""
    unmatched_sources: dict[str, str]
    """Sources without a reconstruction, and why."""
    unmatched_reconstructions: list[str]
    """Reconstructions without a source."""
    remarks: list[str]
    """What else was passed over."""


class LazyImages(Sequence[Tensor]):
    """Image files as a sequence of ``[3 h w]``, read when asked for; an unreadable one raises
    ``ImageError`` then."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.files[index])

    def content(self, index: int) -> bytes:
        """The bytes of a file."""
        return read_content(self.files[index])


def pair_folders(source_dir: Path, recon_dir: Path) -> Pairing:
    """Match the images of two folders (and their subfolders) by name."""
    for folder in (source_dir, recon_dir):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder of images, this is a file")
    if source_dir.resolve() == recon_dir.resolve():
        raise ValueError(
            f"expected two folders, got {source_dir} as sources and as reconstructions"
        )
    sources = list_images(source_dir, recon_dir)
    reconstructions = list_images(recon_dir, source_dir, takes_outputs=True)
    matches = match(sources.names, reconstructions.names, recon_dir)
    if not matches:
        raise ValueError(
            f"no pairs: none of the {len(sources.names)} images in {source_dir} has a "
            f"reconstruction of the same name, or {PREFIX}NAME, among the "
            f"{len(reconstructions.names)} in {recon_dir} (for example "
            f"{printable(sources.names[0])} and {printable(reconstructions.names[0])})"
        )
    taken = set(matches.values())
    return Pairing(
        names=[str(name) for name in matches],
        sources=_files(sources, list(matches)),
        reconstructions=_files(reconstructions, list(matches.values())),
        unmatched_sources={
            str(name): "no reconstruction" for name in sources.names if name not in matches
        },
        unmatched_reconstructions=[
            str(name) for name in reconstructions.names if name not in taken
        ],
        remarks=[
            f"{folder}: {remark}"
            for folder, listing in ((source_dir, sources), (recon_dir, reconstructions))
            for remark in listing.remarks()
        ],
    )


def _files(listing: ImageListing, names: Sequence[Path]) -> list[Path]:
    file = dict(zip(listing.names, listing.files, strict=True))
    return [file[name] for name in names]


def match(
    sources: Sequence[Path], reconstructions: Sequence[Path], recon_dir: Path
) -> dict[Path, Path]:
    """The reconstruction of each source that has one, in the order of the sources.

    Where several could be one's, those that another source can alone have are taken off, until one
    is left.

    Raises:
        ValueError: when more than one is left, or two sources could have but the same.
    """
    claims = find_claims(sources, reconstructions)
    matches: dict[Path, Path] = {}
    while sole := {source: claimed[0] for source, claimed in claims.items() if len(claimed) == 1}:
        owners: dict[Path, Path] = {}
        for source, file in sole.items():
            if file in owners:
                raise ValueError(
                    f"{recon_dir}: {printable(file)} could be the reconstruction of "
                    f"{printable(owners[file])} and of {printable(source)}; call it "
                    f"{PREFIX}NAME.png after the whole name"
                )
            owners[file] = source
        matches |= sole
        claims = {
            source: [f for f in claimed if f not in owners] for source, claimed in claims.items()
        }
    for source, claimed in claims.items():
        if claimed:
            raise ValueError(
                f"{recon_dir}: both {printable(claimed[0])} and {printable(claimed[1])} could "
                f"be the reconstruction of {printable(source)}; remove one"
            )
    return {source: matches[source] for source in sources if source in matches}


def find_claims(sources: Sequence[Path], reconstructions: Sequence[Path]) -> dict[Path, list[Path]]:
    """The files that could be each source's reconstruction: of several grounds, by the best that
    finds any."""
    grounds = [
        (form, part, _index(reconstructions, form, part))
        for part in ("name", "stem")
        for form in (_as_it_is, _composed)
    ]
    claims = {}
    for source in sources:
        claimed = (_called_as(source, form, part, index) for form, part, index in grounds)
        claims[source] = next(filter(None, claimed), [])
    return claims


def _index(files: Sequence[Path], form: Callable[[Path], str], part: str) -> dict[str, list[Path]]:
    """Files by stem; where whole names count, by these too."""
    index: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        index[form(file.with_suffix(""))].append(file)
        if part == "name":
            index[form(file)].append(file)
    return index


def _called_as(
    source: Path, form: Callable[[Path], str], part: str, index: dict[str, list[Path]]
) -> list[Path]:
    name = source.name if part == "name" else source.stem
    names = dict.fromkeys((name, f"{PREFIX}{name}", f"{PREFIX}{shortened(name)}"))
    return [file for each in names for file in index.get(form(source.with_name(each)), ())]


def _as_it_is(path: Path) -> str:
    return str(path)


def _composed(path: Path) -> str:
    return normalize("NFC", str(path))
