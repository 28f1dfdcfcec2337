"""Image-caption pairs streamed from files that need not fit in memory, in an order a resumed run takes up exactly.

Three layouts, told by what a path holds: parquet files; WebDataset tars (``0001.jpg`` beside ``0001.txt`` or
``0001.json``); folders with a ``metadata.jsonl`` of file names and captions. Each file is a shard. Shards come in a new
random order each pass, keyed by (seed, pass), and are read from end to end by Hugging Face ``datasets``, whose stream
tells where in a shard it is. Rows are shuffled by the pool of ``uae.data.buckets``.
"""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from uae.data.folders import folder_files
from uae.data.images import ImageError, image_size, one_line
from uae.utils.seed import make_generator

BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".jsonl": "json"}  # names in the datasets library
METADATA = "metadata.jsonl"
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "file_name")
CAPTION_COLUMNS = ("long_caption", "caption", "text", "txt")  # the first that says anything


class Row(NamedTuple):
    """A pair as it is stored."""

    image: bytes
    """The image file's content, its header read."""
    caption: str
    """Not blank."""
    size: tuple[int, int]
    """(height, width) in pixels."""


def find_shards(paths: Sequence[str | Path] | str | Path) -> list[Path]:
    """The shards among files and folders, searched recursively, in natural order."""
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    shards: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: expected image-caption pairs, found nothing there")
        shards += [file for file in (folder_files(path) if path.is_dir() else [path]) if _is_shard(file)]
    if not shards:
        raise ValueError(f"{', '.join(map(str, paths)) or 'no path given'}: expected image-caption pairs as .parquet "
                         f"files, WebDataset .tar files or a folder with {METADATA}, found none of them")  # fmt: skip
    return list(dict.fromkeys(shards))


def _is_shard(file: Path) -> bool:
    return file.suffix in (".parquet", ".tar") or file.name == METADATA


class CaptionStream:
    """Rows of all shards, pass after pass; one that cannot be read is left out, counted, and the first is named."""

    def __init__(self, paths: Sequence[str | Path] | str | Path, seed: int = 0) -> None:
        check_datasets()
        self.shards, self.seed = find_shards(paths), seed
        self.pass_number = 0
        self.num_skipped = 0
        self._place = 0  # of the shard being read, in this pass's order
        self._num_read = 0  # usable rows of this pass so far
        self._within: dict | None = None  # where to begin in that shard; None for its start
        self._dataset: Any = None
        self._examples: Iterator[dict] | None = None

    def read(self) -> Row | None:
        """The next row; None once at the end of each pass."""
        while True:
            if self._place == len(self.shards):
                self._begin_pass()
                return None
            shard = self._shard()
            example = self._next_example(shard)
            if example is None:
                self._place, self._within, self._examples = self._place + 1, None, None
                continue
            try:
                row = read_row(example, shard)
            except ImageError as error:
                self.skip(error)
                continue
            self._num_read += 1
            return row

    def _next_example(self, shard: Path) -> dict | None:
        try:
            return next(self._open(shard), None)
        except Exception as error:
            why = f"{type(error).__name__}: {one_line(error)}"
            raise ValueError(f"{shard}: datasets cannot read on here, {why}. In a tar each sample must have the same "
                             "extensions, and texts be UTF-8: mend this file or leave it out") from error  # fmt: skip

    def skip(self, reason: ImageError) -> None:
        """Count a row that cannot be used."""
        self.num_skipped += 1
        if self.num_skipped == 1:
            warnings.warn(f"left out, as every such pair from now on: {reason}", stacklevel=3)

    def _begin_pass(self) -> None:
        if self._num_read == 0:
            raise ValueError(f"expected image-caption pairs in {self.shards[0]} … ({len(self.shards)} files), found "
                             f"none that can be used ({self.num_skipped} left out)")  # fmt: skip
        self.pass_number, self._place, self._num_read = self.pass_number + 1, 0, 0

    def _shard(self) -> Path:
        order = torch.randperm(len(self.shards), generator=make_generator(self.seed, self.pass_number, "shards"))
        return self.shards[int(order[self._place])]

    def _open(self, shard: Path) -> Iterator[dict]:
        if self._examples is not None:
            return self._examples
        self._dataset = open_shard(shard)
        if self._within is not None:
            self._dataset.load_state_dict(self._within)
        self._examples = examples = iter(self._dataset)
        return examples

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as plain data."""
        return {
            "pass_number": self.pass_number,
            "place": self._place,
            "num_read": self._num_read,
            "num_skipped": self.num_skipped,
            "within": self._within if self._examples is None else self._dataset.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self.pass_number, self._place = state["pass_number"], state["place"]
        self._num_read, self.num_skipped = state["num_read"], state["num_skipped"]
        self._within, self._examples = state["within"], None


def open_shard(shard: Path) -> Any:
    """One file as a ``datasets.IterableDataset`` whose images stay as they are stored."""
    import datasets
    from pyarrow.dataset import ParquetFragmentScanOptions

    builder, options = BUILDERS[shard.suffix], {}
    if builder == "parquet":  # else the whole file is read ahead
        options["fragment_scan_options"] = ParquetFragmentScanOptions(pre_buffer=False)
    file = glob.escape(str(shard.absolute()))
    rows: Any = datasets.load_dataset(builder, data_files=[file], split="train", streaming=True, **options)
    return rows.decode(False)


def check_datasets() -> None:
    """A ValueError that says what to do when ``datasets`` is not installed."""
    if find_spec("datasets") is None:
        raise ValueError("streaming image-caption pairs needs the datasets library: "
                         "pip install unified-autoencoder[data]")  # fmt: skip


def read_row(example: dict[str, Any], shard: Path) -> Row:
    """A row of any layout.

    Raises:
        ImageError: when the caption is blank or the image cannot be read.
        ValueError: when there is no column of images or none of captions.
    """
    inner = example.get("json")
    fields = {
        name.lower(): value for name, value in ({**inner, **example} if isinstance(inner, dict) else example).items()
    }
    images = [fields[name] for name in IMAGE_COLUMNS if name in fields]
    captions = [fields[name] for name in CAPTION_COLUMNS if name in fields]
    if not images or not captions:
        raise ValueError(f"{shard}: expected a column of images ({', '.join(IMAGE_COLUMNS)}) and one of captions "
                         f"({', '.join(CAPTION_COLUMNS)}), found {', '.join(fields)}; rename them")  # fmt: skip
    caption = next((text for text in captions if isinstance(text, str) and text.strip()), None)
    if caption is None:
        raise ImageError(f"{shard}: a pair's caption is empty or no text")
    image = _content(images, shard)
    return Row(image, caption, image_size(image, shard))


def _content(images: list[Any], shard: Path) -> bytes:
    """Of the first column that holds an image's bytes, ``{bytes, path}``, or else the path of a file beside the shard.

    A sample of a tar may have both: ``0001.jpg``, and a JSON whose ``image`` names it.
    """
    values = [image.get("bytes") or image.get("path") if isinstance(image, dict) else image for image in images]
    content = next((value for value in values if isinstance(value, bytes)), None)
    if content is not None:
        return content
    for value in values:
        try:
            if isinstance(value, str) and (shard.parent / value).is_file():
                return (shard.parent / value).read_bytes()
        except (OSError, ValueError) as error:  # a name too long, or with a null
            raise ImageError(f"{shard}: cannot read an image's file: {one_line(error):.200}") from error
    raise ImageError(f"{shard}: expected an image's content or the path of a file, got {values!r:.80}")
