"""The files that image-caption pairs come in, row by row: whatever a row holds, the rows beside it
are as written.

``datasets`` gives a column one type: a number among the captions of a JSONL puts quotes around all
of them, and a tar's samples must have the same extensions. Here each row is read by itself, and one
that cannot be is named with the reason. A row's number is all that is needed to go on from it.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from uae.data.encodings import encoding_of
from uae.images.read import IMAGE_SUFFIXES
from uae.utils.messages import one_line

# file_name last: a path is read where no column holds an image itself
IMAGE_COLUMNS = tuple(
    dict.fromkeys(
        [
            *("image", "img", "jpg", "jpeg", "png", "webp"),
            *(suffix[1:] for suffix in sorted(IMAGE_SUFFIXES)),
            "file_name",
        ]
    )
)
CAPTION_COLUMNS = ("long_caption", "caption", "text", "txt")  # the first that says anything
NESTED = "json"  # an object with more columns
SUFFIXES = (".parquet", ".tar", ".jsonl")
ROWS_AT_A_TIME = 64
# of a tar: its extension, and what it holds if a pair is made of it
Member = tuple[str, bytes | None]


class ShardRow(NamedTuple):
    """A row as it is stored."""

    name: str
    """What to call it in its file: ``row 7`` of a parquet file, ``line 8`` of a JSONL, ``sample
    0007`` of a tar."""
    fields: dict[str, Any]
    """By column, or by extension in a tar."""
    problem: str = ""
    """Why it cannot be read; empty if it can."""


def rows_of(shard: Path, start: int) -> Iterator[ShardRow]:
    """The rows of a file from number ``start`` on, readable or not.

    Raises:
        OSError: with a number where the file cannot be reached, without one where it is damaged.
        Exception: anything else where the file is damaged.
    """
    read = {".parquet": parquet_rows, ".tar": tar_rows, ".jsonl": jsonl_rows}[shard.suffix.lower()]
    return read(shard, start)


# --- parquet -------------------------------------------------------------------------------------


def parquet_rows(shard: Path, start: int) -> Iterator[ShardRow]:
    """Rows are counted from 0, as pandas does."""
    import pyarrow.parquet as pq

    with open(shard, "rb") as stream:
        file, first = pq.ParquetFile(stream), 0
        columns = [name for name in file.schema_arrow.names if is_read(name)]
        if not columns and file.metadata.num_rows:
            raise ValueError(no_columns(file.schema_arrow.names))
        for group in range(file.num_row_groups):
            number, first = first, first + file.metadata.row_group(group).num_rows
            if first <= start:
                continue
            for batch in file.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=columns):
                for index in range(max(0, start - number), batch.num_rows):
                    yield _parquet_row(batch, index, f"row {number + index}")
                number += batch.num_rows


def _parquet_row(batch: Any, index: int, name: str) -> ShardRow:
    fields = {}
    for column, values in zip(batch.schema.names, batch.columns, strict=True):
        try:
            fields[column] = values[index].as_py()
        except Exception as error:  # a text that is no UTF-8, a date out of range
            problem = f"its column {column!r} cannot be read ({one_line(error)}); remove the row"
            return ShardRow(name, {}, problem)
    return ShardRow(name, fields)


def is_read(column: str) -> bool:
    """Is it a column that a pair is made of?"""
    return column.lower() in (*IMAGE_COLUMNS, *CAPTION_COLUMNS, NESTED)


def no_columns(columns: Iterable[Any]) -> str:
    """What to say of a row or file that has these columns and lacks one."""
    return (
        "expected a column of images (image, img, file_name or an extension such as jpg) and "
        f"one of captions ({', '.join(CAPTION_COLUMNS)}), found "
        f"{', '.join(map(str, columns)) or 'none'}; rename them"
    )


# --- JSONL ---------------------------------------------------------------------------------------


def jsonl_rows(shard: Path, start: int) -> Iterator[ShardRow]:
    """One JSON object a line, lines counted from 1; blank ones are none. UTF-8, or what a byte
    order mark says."""
    with open(shard, "rb") as stream:
        encoding = encoding_of(stream.read(4))
    number = 0
    # UTF-8 has no half bytes
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    with open(shard, encoding=encoding, errors=errors, newline="\n") as lines:
        for line_number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if number >= start and errors == "replace" and "\ufffd" in line:
                problem = f"bytes that are no {encoding.upper()}; mend or remove the line"
                yield ShardRow(f"line {line_number}", {}, problem)
            elif number >= start:
                yield _jsonl_row(line, f"line {line_number}")
            number += 1


def _jsonl_row(line: str, name: str) -> ShardRow:
    try:
        value = load_json(line)
    except (ValueError, RecursionError) as error:
        return _not_an_object(name, f"{line.strip()!r:.60} ({one_line(error)})")
    if not isinstance(value, dict):
        return _not_an_object(name, kind_of(value))
    return ShardRow(name, value)


def _not_an_object(name: str, content: str) -> ShardRow:
    problem = f"expected one JSON object on the line, got {content}; mend or remove the line"
    return ShardRow(name, {}, problem)


def load_json(text: str | bytes) -> Any:
    """Texts as written, control characters too. Python refuses to read very long numbers, of which
    none is used."""
    return json.loads(
        text,
        parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits),
        strict=False,
    )


def kind_of(value: Any) -> str:
    """What a value is, in plain words."""
    if value is None:
        return "null"
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "text",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")


# --- tar -----------------------------------------------------------------------------------------


def tar_rows(shard: Path, start: int) -> Iterator[ShardRow]:
    """WebDataset's samples: consecutive members that share a name up to its first dot, ``0001.jpg``
    and ``0001.txt``.

    Where names hold further dots (``cat.v2.jpg`` beside ``cat.v2.txt``), a sample is what agrees up
    to the last one.
    """
    with open(shard, "rb") as stream, tarfile.open(fileobj=stream) as tar:
        for number, sample in enumerate(_samples(tar)):
            if number >= start:
                yield sample


def _samples(tar: tarfile.TarFile) -> Iterator[ShardRow]:
    for key, group in groupby(_members(tar), lambda member: _split(member.name, first=True)[0]):
        own: list[Member] = []
        others: list[tuple[str, str]] = []
        for stem, part in groupby(group, lambda member: _split(member.name)[0]):
            members = [(_split(member.name)[1], _member_content(tar, member)) for member in part]
            if stem == key:
                own += members
            elif _is_pair(members):
                yield _sample(stem, members)
            else:
                others += [(stem, extension) for extension, _ in members]
        if own:  # the others are more of it, such as 0001.mask.png
            extensions = [extension for extension, _ in own]
            extensions += [f"{stem[len(key) + 1 :]}.{extension}" for stem, extension in others]
            yield _sample(key, own) if _is_pair(own) else _no_pair(key, extensions)
            continue
        for stem, extension in others:
            yield _no_pair(stem, [extension])


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files, without hidden ones and those that have no extension."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else they pile up
        name = PurePosixPath(member.name).name
        if member.isfile() and "." in name[1:] and not name.startswith("."):
            yield member
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)  # tarfile takes any block that is no header for the end
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {tar.offset}: cut short or damaged")


def _split(name: str, *, first: bool = False) -> tuple[str, str]:
    """A member's name, with its folder, before and after its last (or first) dot; extensions in
    lower case."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".") if first else base.rpartition(".")
    return folder + slash + stem, extension.lower()


def _member_content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """What a member holds, if a pair is made of it."""
    if not is_read(_split(member.name)[1]):
        return None
    stream = tar.extractfile(member)
    assert stream is not None
    return stream.read()


def _is_pair(members: list[Member]) -> bool:
    names = {extension for extension, _ in members}
    return bool(names & set(IMAGE_COLUMNS)) and bool(names & {*CAPTION_COLUMNS, NESTED})


def _no_pair(key: str, extensions: list[str]) -> ShardRow:
    problem = (
        f"expected {key}.jpg (or another image) and {key}.txt or {key}.json next to it in the "
        f"tar, found .{', .'.join(extensions)}; rename them to agree up to their first or last dot"
    )
    return ShardRow(f"sample {key}", {}, problem)


def _sample(key: str, members: list[Member]) -> ShardRow:
    fields: dict[str, Any] = {}
    for extension, content in members:
        if extension in fields:
            problem = f"two members are called {key}.{extension}; rename one"
            return ShardRow(f"sample {key}", {}, problem)
        fields[extension] = content
    if fields.get(NESTED) is not None:
        try:
            fields[NESTED] = load_json(fields[NESTED])
        except (ValueError, RecursionError) as error:
            fields[NESTED] = None
            if not fields.keys() & set(CAPTION_COLUMNS):
                problem = f"its .json is no JSON ({one_line(error)}); mend it"
                return ShardRow(f"sample {key}", {}, problem)
    return ShardRow(f"sample {key}", fields)
