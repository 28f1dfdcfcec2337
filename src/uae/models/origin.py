"""What a saved model was trained from, by name and by the identity of its weights.

A folder that holds adapters alone lies on its base: ``uae.json`` says where that is (a shipped
model's name, a folder, or a hub id with the revision) and which weights it had. A base that is
gone, or is another by now, is named in one line, never guessed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from uae.utils.assets import ASSETS
from uae.utils.files import atomic_write_json, sha256_of
from uae.utils.weights import DESCRIPTION, hub_revision, naming_files

SHIPPED = {"tiny": ASSETS / "umm1", "tiny-ar": ASSETS / "umm2", "tiny-early": ASSETS / "early"}
# of a folder's weights: all, or one encoder in the place of its base's; others are adapters on it
WHOLE, ENCODER = "whole", "encoder"
WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.pt")
ADAPTER_CONFIG = "adapter_config.json"


class Origin(NamedTuple):
    """One that a model was loaded from."""

    source: str
    """As it was asked for."""
    folder: Path
    """Where it is on this disk."""


@dataclass(frozen=True)
class Base:
    """A checkpoint as it is recorded."""

    source: str
    """A shipped model's name, a folder, or REPOSITORY@REVISION."""
    weights: str
    """``commit:…`` of the hub, or ``sha256:…`` over the weight files."""
    beside: str | None = None
    """The folder as seen from the one that records it: both may have moved together."""

    @classmethod
    def of(cls, origin: Origin, recorded_in: Path) -> Base:
        """The identity of its weights; reads a folder's weight files, whole."""
        source, folder = origin
        if (revision := hub_revision(folder)) is not None:
            return cls(f"{source.partition('@')[0]}@{revision}", f"commit:{revision}")
        if source in SHIPPED:
            return cls(source, checksum(folder))
        place = folder.absolute()
        return cls(str(place), checksum(folder), os.path.relpath(place, recorded_in.absolute()))

    def find(self, recorded_in: Path) -> str:
        """The source to load it from.

        Raises:
            ValueError: when it is gone or has other weights by now.
        """
        if self.weights.startswith("commit:"):
            return self.source  # the hub gives this revision or none
        folders = [place for place in self._places(recorded_in) if place.is_dir()]
        if not folders:
            raise ValueError(
                f"{recorded_in}: expected its base, the model that its adapters lie on, at "
                f"{self.source}, found nothing there; put it back, or write its new place into "
                "uae.json as the base's `source`"
            )
        for folder in folders:
            if checksum(folder) == self.weights:
                return self.source if self.source in SHIPPED else str(folder)
        raise ValueError(
            f"{recorded_in}: expected its base at {folders[0]} as it was, weights "
            f"{self.weights:.19}…, but they are {checksum(folders[0]):.19}… by now; put back "
            "the model that its adapters were trained on"
        )

    def _places(self, recorded_in: Path) -> list[Path]:
        if self.source in SHIPPED:
            return [SHIPPED[self.source]]
        beside = (
            [Path(os.path.normpath(recorded_in.absolute() / self.beside))] if self.beside else []
        )
        return [*beside, Path(self.source).expanduser()]


def describe(
    folder: Path,
    family: str,
    settings: Mapping[str, Any],
    origin: Sequence[Origin],
    *,
    whole: bool,
) -> None:
    """Write ``uae.json``: family and settings, what the weights here were trained from, and whether
    they are whole."""
    bases = (Base.of(each, folder) for each in origin)
    recorded = [
        {name: value for name, value in asdict(base).items() if value is not None} for base in bases
    ]
    atomic_write_json(
        folder / DESCRIPTION,
        {
            "family": family,
            **settings,
            "weights": WHOLE if whole else "adapters",
            "adapters": adapters_in(folder),
            "base": recorded,
        },
    )


def adapters_in(folder: Path) -> list[str]:
    """Where below a model's folder adapters lie."""
    return sorted(
        file.parent.relative_to(folder).as_posix() for file in folder.rglob(ADAPTER_CONFIG)
    )


def find_base(described: Mapping[str, Any], folder: Path) -> list[str]:
    """The sources of the base that ``uae.json`` names: one model's, or an encoder's and a
    decoder's."""
    with naming_files(folder, "the name of a base", DESCRIPTION):
        bases = [Base(**each) for each in described["base"]]
        if len(bases) not in (1, 2):
            raise ValueError(f"expected one model, or an encoder and a decoder, got {len(bases)}")
    return [base.find(folder) for base in bases]


def checksum(folder: Path) -> str:
    """Of the names and contents of all weight files."""
    files = sorted({file for pattern in WEIGHT_PATTERNS for file in folder.rglob(pattern)})
    total = hashlib.sha256()
    for file in files:
        status = file.stat()
        content = _content(file, status.st_size, status.st_mtime_ns, status.st_ino)
        total.update(f"{file.relative_to(folder).as_posix()}\0".encode() + content)
    return f"sha256:{total.hexdigest()}"


@lru_cache(maxsize=1024)
def _content(file: Path, *status: int) -> bytes:
    """The hash of a file, which is read once while it has this status: a run names its base at
    each evaluation."""
    return sha256_of(file)


def hub_name(folder: Path) -> tuple[str, str | None]:
    """How libraries are told of a folder: by repository and revision in the hub's cache, else by
    its path."""
    revision = hub_revision(folder)
    if revision is None:
        return str(folder.absolute()), None
    repository = folder.parts[folder.parts.index("snapshots") - 1]
    return repository.removeprefix("models--").replace("--", "/"), revision
