"""Image-caption pairs streamed from files that need not fit in memory, in an order a resumed run
takes up exactly.

Three layouts, told by a file's name and read by ``uae.data.layouts``: parquet files; WebDataset
tars (``0001.jpg`` beside ``0001.txt`` or ``0001.json``); folders with a ``metadata.jsonl`` of file
names and captions. Each file is a shard. Shards come in a new random order each pass, keyed by
(seed, pass), and are read from end to end. Rows are shuffled by the pool of ``uae.data.buckets``.

A caption is a text, taken exactly as it is written; of what is anything else the row is left out. A
shard that is damaged is read up to there.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from uae.data.encodings import encoding_of
from uae.data.folders import folder_files
from uae.data.inventory import WHEN_TO_MEND, Inventory
from uae.data.layouts import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    NESTED,
    SUFFIXES,
    ShardRow,
    kind_of,
    no_columns,
    rows_of,
)
from uae.images.read import IMAGE_SUFFIXES, ImageError, image_size
from uae.utils.messages import one_line
from uae.utils.seed import make_generator

METADATA = "metadata.jsonl"
MAX_NAMED = 20  # rows that are left out; further ones are counted


class StoredPair(NamedTuple):
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
        shards += _shards_of(path)
    if not shards:
        raise ValueError(
            f"{', '.join(map(str, paths)) or 'no path given'}: expected image-caption pairs as "
            f".parquet files, WebDataset .tar files or a folder with {METADATA}, found none of "
            "them"
        )
    return list(dict.fromkeys(shards))


def _shards_of(path: Path) -> list[Path]:
    """A file given by name may be any ``.jsonl``; a link that leads nowhere is named and passed
    over."""
    if not path.is_dir():
        return [path] if path.suffix.lower() in SUFFIXES else []
    shards = [file for file in folder_files(path) if _is_shard(file)]
    for file in shards:
        if not file.exists():
            warnings.warn(
                f"passed over: {file}: a link that leads nowhere; mend it {WHEN_TO_MEND}",
                stacklevel=3,
            )
    return [file for file in shards if file.exists()]


def data_files(paths: Sequence[str | Path] | str | Path) -> Inventory:
    """What pairs are read from: shards, and the images in a folder of a ``.jsonl``."""
    roots = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    shards = find_shards(paths)
    folders = dict.fromkeys(shard.parent for shard in shards if shard.suffix.lower() == ".jsonl")
    images = (
        file
        for folder in folders
        for file in folder_files(folder)
        if file.suffix.lower() in IMAGE_SUFFIXES
    )
    return Inventory.of(list(dict.fromkeys([*shards, *images])), roots)


def _is_shard(file: Path) -> bool:
    return file.suffix.lower() in (".parquet", ".tar") or file.name.lower() == METADATA


class CaptionStream:
    """Rows of all shards, pass after pass; what cannot be read is left out, counted and named."""

    def __init__(self, paths: Sequence[str | Path] | str | Path, seed: int = 0) -> None:
        check_pyarrow()
        self.shards, self.seed = find_shards(paths), seed
        self.pass_number = 0
        self.num_skipped = 0
        self.name = ""  # of the last row: its file, and where it is in there
        self._place = 0  # of the shard being read, in this pass's order
        self._num_read = 0  # usable rows of this pass so far
        self._within = 0  # rows of that shard so far
        self._rows: Iterator[ShardRow] | None = None
        self._problems: list[str] = []
        self._num_rows_named = 0

    def read(self) -> StoredPair | None:
        """The next row; None once at the end of each pass."""
        while True:
            if self._place == len(self.shards):
                self._begin_pass()
                return None
            shard = self._shard()
            row = self._next_row(shard)
            if row is None:
                self._place, self._within, self._rows = self._place + 1, 0, None
                continue
            self._within += 1
            self.name = f"{shard} {row.name}"
            try:
                if row.problem:
                    raise ImageError(f"{self.name}: {row.problem}")
                pair = read_row(row.fields, shard, self.name)
            except ImageError as error:
                self.skip(error)
                continue
            self._num_read += 1
            return pair

    def _next_row(self, shard: Path) -> ShardRow | None:
        """The shard's next row; None at its end, which is where it is damaged."""
        try:
            if self._rows is None:
                self._rows = rows_of(shard, self._within)
            row = next(self._rows, None)
        except MemoryError:
            raise
        # pyarrow and tarfile raise whatever a damaged file leads them to
        except Exception as error:
            self._rows = None
            if isinstance(error, OSError) and error.errno is not None:
                raise ValueError(
                    f"{shard}: cannot be read now ({error.strerror}); when it can, the same "
                    "command goes on from the last checkpoint"
                ) from error
            self._pass_over(shard, error)
            return None
        if row is None and self._within == 0:
            self._warn_once(f"passed over: {shard}: holds no rows; remove it")
        return row

    def _pass_over(self, shard: Path, error: Exception) -> None:
        self.num_skipped += 1
        part = f"after its first {self._within:,} rows" if self._within else "the whole file"
        self._warn_once(
            f"passed over, {part}: {shard}: cannot be read ({one_line(error):.400}); mend it"
        )

    def skip(self, reason: ImageError) -> None:
        """Count a row that cannot be used."""
        self.num_skipped += 1
        self._num_rows_named += 1
        if self._num_rows_named <= MAX_NAMED:
            self._warn_once(f"left out: {reason}")
        elif self._num_rows_named == MAX_NAMED + 1:
            self._warn_once(
                f"left out: more than {MAX_NAMED} pairs, which from now on are counted, not "
                "named; mend them"
            )

    def _warn_once(self, problem: str) -> None:
        if problem not in self._problems:
            self._problems.append(problem)
            warnings.warn(f"{problem} {WHEN_TO_MEND}", stacklevel=4)

    def _begin_pass(self) -> None:
        if self._num_read == 0:
            first = f"; {self._problems[0]}" if self._problems else ""
            raise ValueError(
                f"expected image-caption pairs in {self.shards[0]} … ({len(self.shards)} files), "
                f"found none that can be used ({self.num_skipped} left out){first}"
            )
        self.pass_number, self._place, self._num_read = self.pass_number + 1, 0, 0

    def _shard(self) -> Path:
        order = torch.randperm(
            len(self.shards), generator=make_generator(self.seed, self.pass_number, "shards")
        )
        return self.shards[int(order[self._place])]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as plain data."""
        return {
            "pass_number": self.pass_number,
            "place": self._place,
            "num_read": self._num_read,
            "num_skipped": self.num_skipped,
            "within": self._within,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self.pass_number, self._place = state["pass_number"], state["place"]
        self._num_read, self.num_skipped = state["num_read"], state["num_skipped"]
        self._within, self._rows = num_rows_before(state["within"]), None


def num_rows_before(within: int | dict[str, Any] | None) -> int:
    """How many rows of its shard a stream had passed; older checkpoints hold a place of
    ``datasets`` instead."""
    if not isinstance(within, dict):
        return within or 0
    place = within["examples_iterable"]
    if "previous_state" in place:
        start = place["previous_state"]["shard_example_idx"]
        return start + place["num_chunks_since_previous_state"]
    return place["shard_example_idx"]


def check_pyarrow() -> None:
    """A ValueError that says what to do when ``pyarrow`` is not installed."""
    if find_spec("pyarrow") is None:
        raise ValueError(
            "streaming image-caption pairs needs the pyarrow library: "
            "pip install unified-autoencoder[data]"
        )


def read_row(example: dict[str, Any], shard: Path, name: str = "") -> StoredPair:
    """A row of any layout. ``name`` is what messages call it, by default its file.

    Raises:
        ImageError: when there is no column of images or of captions, no caption that says anything,
            or no image that can be read.
    """
    nested, name = example.get(NESTED), name or str(shard)
    parts = [example, nested] if isinstance(nested, dict) else [example]
    fields = [(key.lower(), value) for part in parts for key, value in part.items()]
    images = [value for column in IMAGE_COLUMNS for key, value in fields if key == column]
    captions = [value for column in CAPTION_COLUMNS for key, value in fields if key == column]
    if not images or not captions:
        raise ImageError(f"{name}: {no_columns(dict.fromkeys(key for key, _ in fields))}")
    caption = _caption(captions, name)
    image = _image_content(images, shard, name)
    return StoredPair(image, caption, image_size(image, name))


def _caption(values: list[Any], name: str) -> str:
    """The first that says anything."""
    problems = []
    for value in values:
        text, problem = _text(value)
        if not problem:
            return text
        problems.append(problem)
    raise ImageError(
        f"{name}: expected a text as caption, got {problems[0]}; give it one or remove the row"
    )


def _text(value: Any) -> tuple[str, str]:
    """A text as it is written, or why it is no caption. Some writers of parquet store texts as
    plain bytes."""
    try:
        text = value.decode(encoding_of(value)) if isinstance(value, bytes) else value
        if not isinstance(text, str):
            return "", kind_of(value) + ("" if value is None else f": {value!r:.60}")
        text.encode()
    except UnicodeDecodeError as error:
        return "", f"bytes that are no UTF-8 ({error})"
    except UnicodeEncodeError as error:
        return "", f"a text with half a character or a byte that is no UTF-8 ({error})"
    is_blank = all(char.isspace() or not char.isprintable() for char in text)
    return text, "one that is empty or blank" if is_blank else ""


def _image_content(images: list[Any], shard: Path, name: str) -> bytes:
    """Of the first column that holds an image's bytes, ``{bytes, path}``, or else the path of a
    file beside the shard.

    A sample of a tar may have both: ``0001.jpg``, and a JSON whose ``image`` names it.
    """
    values = [
        image.get("bytes") or image.get("path") if isinstance(image, dict) else image
        for image in images
    ]
    content = next((value for value in values if isinstance(value, bytes)), None)
    if content is not None:
        return content
    try:
        paths = [value for value in values if isinstance(value, str)]
        for file in (shard.parent / form for path in paths for form in _unicode_forms(path)):
            if file.is_file():
                return file.read_bytes()
    except (OSError, ValueError) as error:  # a name too long, or with a null
        raise ImageError(f"{name}: cannot read an image's file: {one_line(error):.200}") from error
    excerpts = ", ".join(f"{value!r:.80}" for value in values)
    raise ImageError(
        f"{name}: expected an image's content or the path of a file, got {excerpts:.200}; put it "
        "there or remove the row"
    )


def _unicode_forms(name: str) -> list[str]:
    """A name as it is written, and composed or decomposed, as another system may have stored it."""
    forms = [name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]
    return list(dict.fromkeys(forms))
