"""Training images of a user's folders, and prompts of a file. A step's batch depends on the step
alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from uae.data.folders import list_images
from uae.data.inventory import FILE_NAME, WHEN_TO_MEND, Inventory, check_unchanged
from uae.data.prompts import read_prompts
from uae.images.read import ImageError, read_image
from uae.images.resize import fit_to
from uae.utils.seed import make_generator


class FolderImages:
    """Image files in a new random order each pass. The last tenth of them (at most 16) is kept for
    the probe.

    size: (height, width) every image is resized and cropped to, or None to leave sizes as they are.
    A file that cannot be read is named once and the next one takes its place.
    """

    kind = "images"

    def __init__(
        self, paths: Sequence[str | Path], size: tuple[int, int] | None, seed: int = 0
    ) -> None:
        listing = list_images(paths)
        for reason in listing.unreadable:
            warnings.warn(f"left out: {reason}", stacklevel=2)
        files, self._roots = listing.files, [Path(path) for path in paths]
        num_probe = min(16, max(1, len(files) // 10))
        self.files, self.probe_files = files[: len(files) - num_probe] or files, files[-num_probe:]
        self.size, self.seed = size, seed
        self._unreadable: set[Path] = set()

    def batch(self, step: int, num_images: int) -> list[Tensor]:
        return [self._image(step * num_images + i) for i in range(num_images)]

    def probe(self, num_images: int) -> list[Tensor]:
        images = [image for file in self.probe_files if (image := self._read(file)) is not None]
        return images[:num_images] or self.batch(0, 1)

    def inventory(self) -> Inventory:
        """All files, those of the probe too, as they are now."""
        return Inventory.of(list(dict.fromkeys([*self.files, *self.probe_files])), self._roots)

    def _image(self, position: int) -> Tensor:
        """The first readable image from ``position`` on, in the order of its pass."""
        for ahead in range(len(self.files)):
            image = self._read(self.files[_shuffled(position + ahead, len(self.files), self.seed)])
            if image is not None:
                return image
        raise ImageError(
            f"expected at least one readable image, none of {len(self.files)} files could be read"
        )

    def _read(self, file: Path) -> Tensor | None:
        try:
            image = read_image(file)
        except (ImageError, FileNotFoundError) as error:  # the latter of a link that leads nowhere
            if file not in self._unreadable:
                self._unreadable.add(file)
                warnings.warn(f"left out: {error} {WHEN_TO_MEND}", stacklevel=2)
            return None
        return image if self.size is None else fit_to(image, self.size)


@dataclass(frozen=True)
class FilePrompt:
    """A prompt of a file."""

    text: str
    row: Mapping[str, Any] = field(compare=False)
    """What the file says of it, ``prompt`` included."""


class FilePrompts:
    """Prompts of a file in a new random order each pass. The last tenth of them (at most 16) is
    kept for the probe; of fewer than ten none is, and the probe takes those that are learnt from.

    Raises:
        ValueError: when the file cannot be read as prompts.
    """

    def __init__(self, path: Path, seed: int = 0, kind: str = "prompts") -> None:
        prompts = [FilePrompt(row["prompt"], row) for row in read_prompts(path)]
        num_probe = min(16, len(prompts) // 10)
        self.prompts = prompts[: len(prompts) - num_probe]
        self.probe_prompts = prompts[len(prompts) - num_probe :] or prompts
        self.path, self.seed, self.kind = path, seed, kind

    def batch(self, step: int, num_prompts: int) -> list[FilePrompt]:
        places = range(step * num_prompts, (step + 1) * num_prompts)
        return [self.prompts[_shuffled(place, len(self.prompts), self.seed)] for place in places]

    def probe(self, num_prompts: int) -> list[FilePrompt]:
        return self.probe_prompts[:num_prompts]

    def inventory(self) -> Inventory:
        """The file as it is now."""
        return Inventory.of([self.path], [self.path])


def _shuffled(position: int, number: int, seed: int) -> int:
    """Which of ``number`` comes at this position, where each pass has an order of its own."""
    epoch, index = divmod(position, number)
    order = torch.randperm(number, generator=make_generator(seed, epoch, "shuffle"))
    return int(order[index])


@runtime_checkable
class Filed(Protocol):
    """What a run learns from, where that lies in files."""

    kind: str
    """What the files hold."""

    def inventory(self) -> Inventory:
        """The files as they are now."""
        ...


def check_same_files(source: object, run_dir: Path) -> None:
    """A ValueError that names what changed in the files of ``source``, if it has any, since the run
    in ``run_dir`` was started."""
    if isinstance(source, Filed):
        # a run may learn from texts beside its images
        name = FILE_NAME if source.kind == "images" else f"{source.kind}_{FILE_NAME}"
        check_unchanged(run_dir, source.inventory(), source.kind, name)
