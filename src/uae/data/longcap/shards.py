"""Captioned images as parquet, as ``datasets`` reads them: an image's own bytes, its caption, and
where both are from.

Images are read when their shard is written, a few at a time. A shard is written under another name,
flushed and renamed; shards of an earlier run that are not of the new set go first. The same journal
gives the same shards.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uae.data.longcap.journal import Journal
from uae.data.longcap.pictures import Picture
from uae.utils.files import disk_error

ROWS_AT_A_TIME = 64


def write_shards(
    pictures: list[Picture], journal: Journal, model: str, folder: Path, shard_size: int
) -> list[Path]:
    """``train-00000-of-000NN.parquet`` with ``shard_size`` captioned pictures each; the files."""
    parts = [pictures[i : i + shard_size] for i in range(0, len(pictures), shard_size)]
    paths = [folder / f"train-{i:05d}-of-{len(parts):05d}.parquet" for i in range(len(parts))]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in {*folder.glob("train-*.parquet"), *folder.glob(".train-*")} - set(paths):
            old.unlink()
        for path, part in zip(paths, parts, strict=True):
            write_shard(path, row_batches(part, journal, model))
    except OSError as error:
        raise disk_error(
            "shards", folder, error, "All captions are safe in journal.jsonl. "
        ) from error
    return paths


def write_shard(path: Path, batches: Iterator[list[dict[str, Any]]]) -> None:
    """One file, complete or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    unfinished, schema = path.with_name(f".{path.name}.tmp"), arrow_schema()
    try:
        with open(unfinished, "wb") as file:
            with pq.ParquetWriter(file, schema) as writer:
                for batch in batches:
                    writer.write_table(pa.Table.from_pylist(batch, schema))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def arrow_schema() -> Any:
    """The columns, with the note by which ``datasets`` knows that ``image`` is one."""
    from datasets import Features, Image, Value

    text, number = Value("string"), Value("int32")
    return Features(
        image=Image(),
        caption=text,
        num_words=number,
        model=text,
        width=number,
        height=number,
        sha256=text,
    ).arrow_schema


def row_batches(
    pictures: list[Picture], journal: Journal, model: str
) -> Iterator[list[dict[str, Any]]]:
    """The rows of a shard, a few at a time."""
    for start in range(0, len(pictures), ROWS_AT_A_TIME):
        yield [row(picture, journal, model) for picture in pictures[start : start + ROWS_AT_A_TIME]]


def row(picture: Picture, journal: Journal, model: str) -> dict[str, Any]:
    try:
        data = picture.file.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{picture.file} can no longer be read ({error.strerror}); run the same command again"
        ) from error
    if hashlib.sha256(data).hexdigest() != picture.sha256:
        raise ValueError(
            f"{picture.file} changed while captions were made; run the same command again"
        )
    return {
        "image": {"bytes": data, "path": os.fsencode(picture.file.name).decode(errors="replace")},
        "caption": journal.caption(picture.sha256),
        "num_words": journal.records[picture.sha256].num_words,
        "model": model,
        "width": picture.width,
        "height": picture.height,
        "sha256": picture.sha256,
    }
