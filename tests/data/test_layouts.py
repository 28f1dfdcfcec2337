"""Rows of any content: what is no text is left out by name, all others are exactly as written;
damage costs no run."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from tests.data.test_captions import batches, pairs, png, write_parquet, write_shards, write_tar
from uae.data.captions import CaptionStream
from uae.data.inventory import WHEN_TO_MEND
from uae.stages.fit import FitSettings, fit

SAID = ['plain words, "quoted" \u2028 é 12', " 5", "null"]  # what a converter would change


def read(path: Path) -> tuple[list[str], list[str]]:
    """The captions of one pass, and what was warned of without the folder's name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        captions = [row.caption for row in iter(CaptionStream(path).read, None)]
    ours = [str(warning.message) for warning in caught if warning.category is UserWarning]
    return captions, [message.replace(f"{path}{os.sep}", "") for message in ours]


def jsonl(folder: Path, lines: list[str], encoding: str = "utf-8", end: str = "\n") -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(10):
        (folder / f"{index}.png").write_bytes(png(index))
    (folder / "metadata.jsonl").write_bytes("".join(line + end for line in lines).encode(encoding))
    return folder


def line(index: int, caption: Any) -> str:
    return json.dumps({"file_name": f"{index}.png", "caption": caption})


def tar(file: Path, members: list[tuple[str, bytes | str]], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as stream:  # type: ignore[call-overload]
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            stream.addfile(info, io.BytesIO(data))
    return file.parent


def parquet(folder: Path, captions: Any, images: Any = None, **columns: Any) -> Path:
    images = [png(index) for index in range(len(captions))] if images is None else images
    pq.write_table(
        pa.table({"image": images, "caption": captions, **columns}),
        folder / "a.parquet",
        row_group_size=2,
    )
    return folder


# --- JSONL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize(
    ("caption", "what"),
    [
        (12345, "a number: 12345"),
        (1.5, "a number: 1.5"),
        (10**30, "a number: 1e[+]30"),
        (True, "true or false"),
        (None, "null"),
        (["a", "b"], "a list"),
        ([], "a list"),
        ({"text": "a"}, "an object"),
        ("", "empty or blank"),
        (" \n\t", "empty or blank"),
        ("\u200b\ufeff", "empty or blank"),
        ("a \ud800 b", "half a character"),
    ],
)
def test_a_caption_that_is_no_text_is_left_out_by_name(
    tmp_path: Path, caption: Any, what: str, place: int
):
    """Wherever it stands: before, between or after texts."""
    lines = [line(index, text) for index, text in enumerate(SAID)]
    lines.insert(place, line(9, caption))
    captions, warned = read(jsonl(tmp_path, lines))
    assert captions == SAID
    assert len(warned) == 1
    assert warned[0].startswith(f"left out: metadata.jsonl line {place + 1}: ") and re.search(
        what, warned[0]
    )


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ("{broken", "expected one JSON object"),
        ("[1, 2]", "got a list"),
        ("5", "got a number"),
        ("[" * 100_000, "recursion"),
        ('{"file_name": "9.png"}', "found file_name;"),
        ('{"caption": "a"}', "found caption;"),
        ('{"file_name": "no.png", "caption": "a"}', "got 'no.png'"),
        ('{"file_name": 5, "caption": "a"}', "got 5"),
        ('{"file_name": "9.png", "caption": NaN}', "a number: nan"),
        ("\0", "expected one JSON object"),
    ],
)
def test_a_line_that_is_no_pair_stops_nothing(tmp_path: Path, bad: str, what: str):
    captions, warned = read(jsonl(tmp_path, [line(0, SAID[0]), "", "  ", bad, line(1, SAID[1])]))
    assert captions == SAID[:2]
    assert (
        len(warned) == 1
        and warned[0].startswith("left out: metadata.jsonl line 4: ")
        and what in warned[0]
    )


def test_texts_are_taken_as_written(tmp_path: Path):
    """Keys of other case, late, twice (the last counts, as JSON readers have it) or with endless
    numbers; a NUL."""
    lines = [
        '{"file_name": "0.png", "caption": "tab\there"}',
        '{"file_name": "1.png", "caption": "\\u0000x"}',
        '{"FILE_NAME": "2.png", "Caption": "case"}',
        '{"id": %s, "file_name": "3.png", "caption": "id"}' % ("9" * 5000),
        '{"file_name": "4.png", "caption": "one", "caption": "two"}',
        '{"file_name": "5.png", "caption": 7, "text": "the other column"}',
    ]
    captions, warned = read(jsonl(tmp_path, lines))
    assert (
        captions == ["tab\there", "\0x", "case", "id", "two", "the other column"] and warned == []
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_that_a_mark_names(tmp_path: Path, encoding: str, end: str):
    lines = [
        json.dumps({"file_name": f"{i}.png", "caption": text}, ensure_ascii=False)
        for i, text in enumerate(SAID)
    ]
    assert read(jsonl(tmp_path, lines, encoding, end)) == (SAID, [])


def test_bytes_of_another_encoding_cost_their_line(tmp_path: Path):
    folder = jsonl(tmp_path, [line(0, "zero")])
    content = (folder / "metadata.jsonl").read_bytes()
    (folder / "metadata.jsonl").write_bytes(
        content + b'{"file_name": "1.png", "caption": "caf\xe9"}\n' + content
    )
    captions, warned = read(folder)
    assert (
        captions == ["zero", "zero"]
        and len(warned) == 1
        and "line 2" in warned[0]
        and "no UTF-8" in warned[0]
    )
    wide = (line(0, "zero") + "\n").encode("utf-16-be")
    (folder / "metadata.jsonl").write_bytes(
        codecs.BOM_UTF16_BE + wide + b"\xd8\x00\x00a\x00\n" + wide
    )
    captions, warned = read(folder)
    assert captions == ["zero", "zero"] and len(warned) == 1
    assert warned[0].startswith("left out: metadata.jsonl line 2: bytes that are no UTF-16")


def test_a_name_composed_otherwise_than_on_the_disk(tmp_path: Path):
    (tmp_path / "cafe\u0301.png").write_bytes(png(1))
    row = {"file_name": "caf\xe9.png", "caption": "x"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert read(tmp_path) == (["x"], [])


def test_a_jsonl_of_another_name_is_read_when_it_is_named(tmp_path: Path):
    jsonl(tmp_path, [line(0, "zero")])
    (tmp_path / "metadata.jsonl").rename(tmp_path / "train.JSONL")
    assert [row.caption for row in iter(CaptionStream(tmp_path / "train.JSONL").read, None)] == [
        "zero"
    ]


# --- parquet -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
def test_columns_of_text_of_any_type(tmp_path: Path, kind: pa.DataType):
    assert read(parquet(tmp_path, pa.array(SAID).cast(kind))) == (SAID, [])


def test_columns_of_no_text_are_left_out_row_by_row(tmp_path: Path):
    for number, column in enumerate(
        ([1, 2, 3], [["a"], [], None], [{"a": "b"}] * 3, [b"caf\xe9", b"\xff", None])
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        captions, warned = read(parquet(folder, column, text=["one", "", "three"]))
        assert captions == ["one", "three"]
        assert len(warned) == 1 and warned[0].startswith(
            "left out: a.parquet row 1: expected a text as caption, got "
        )


def test_a_text_that_is_no_utf8_costs_its_row(tmp_path: Path):
    broken = pa.StringArray.from_buffers(
        3,
        pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in range(4))),
        pa.py_buffer(b"a\xe9b"),
    )
    captions, warned = read(parquet(tmp_path, broken))
    assert (
        captions == ["a", "b"]
        and len(warned) == 1
        and "row 1: its column 'caption' cannot be read" in warned[0]
    )


def test_images_as_bytes_structs_and_paths(tmp_path: Path):
    (tmp_path / "beside.png").write_bytes(png(4))
    for images in (
        [png(4)] * 2,
        pa.array([png(4)] * 2, pa.large_binary()),
        [{"bytes": png(4), "path": "elsewhere"}] * 2,
        ["beside.png"] * 2,
        [{"bytes": None, "path": "beside.png"}] * 2,
    ):
        parquet(tmp_path, ["a", "b"], images)
        assert [row.image for row in iter(CaptionStream(tmp_path).read, None)] == [png(4)] * 2
    captions, warned = read(parquet(tmp_path, ["a", "b", "c"], [png(1), None, png(2)]))
    assert (
        captions == ["a", "c"]
        and len(warned) == 1
        and "a.parquet row 1: expected an image" in warned[0]
    )


def test_files_and_row_groups_without_rows_are_passed_over(tmp_path: Path):
    write_parquet(tmp_path / "b.parquet", pairs(3))
    schema = pq.read_schema(tmp_path / "b.parquet")
    pq.write_table(schema.empty_table(), tmp_path / "a.parquet")
    with pq.ParquetWriter(tmp_path / "c.parquet", schema) as writer:
        for rows in (pairs(0), pairs(2, first=3), pairs(0), pairs(1, first=5), pairs(0)):
            images = [{"bytes": image, "path": None} for image, _ in rows]
            columns = {
                "image": images,
                "long_caption": [text for _, text in rows],
                "id": range(len(rows)),
            }
            writer.write_table(pa.table(columns, schema=schema))
    assert pq.read_metadata(tmp_path / "c.parquet").num_row_groups >= 2
    captions, warned = read(tmp_path)
    assert sorted(captions) == [f"picture {i}" for i in range(6)]
    assert warned == [f"passed over: a.parquet: holds no rows; remove it {WHEN_TO_MEND}"]


# --- tar -----------------------------------------------------------------------------------------


def test_keys_that_hold_dots(tmp_path: Path):
    members = [
        ("a.b.c.jpg", png(0)),
        ("a.b.c.txt", "one"),
        ("a.b.d.jpg", png(1)),
        ("a.b.d.json", '{"caption": "two"}'),
        ("v1.0/x.y/k.jpg", png(2)),
        ("v1.0/x.y/k.txt", "three"),
        ("IMG.001.PNG", png(3)),
        ("IMG.001.TXT", "four"),
        ("IMG.002.png", png(4)),
        ("IMG.003.png", png(5)),
        ("IMG.003.txt", "five"),
    ]
    captions, warned = read(tar(tmp_path / "a.tar", members))
    assert captions == ["one", "two", "three", "four", "five"]
    assert (
        len(warned) == 1
        and "sample IMG.002: expected IMG.002.jpg" in warned[0]
        and "last dot" in warned[0]
    )


def test_further_members_of_a_sample_change_nothing(tmp_path: Path):
    members = [
        ("0.depth.png", png(9)),
        ("0.jpg", png(0)),
        ("0.mask.png", png(8)),
        ("0.txt", "zero"),
        ("._0.jpg", b"mac"),
        ("README", "x"),
        ("1.jpg", png(1)),
        ("1.caption.txt", "not where it is looked for"),
        ("2.cls", "5"),
        ("2.jpg", png(2)),
        ("2.txt", "two"),
    ]
    tar(tmp_path / "a.tar", members)
    stream = CaptionStream(tmp_path)
    with pytest.warns(
        UserWarning, match=r"sample 1: .* found \.jpg, \.caption\.txt; rename"
    ) as warned:
        assert [row[:2] for row in iter(stream.read, None)] == [(png(0), "zero"), (png(2), "two")]
    assert len([warning for warning in warned if warning.category is UserWarning]) == 1


def test_samples_of_a_tar_need_not_be_alike(tmp_path: Path):
    members = [
        ("0.jpg", png(0)),
        ("0.txt", "zero\n"),
        ("1.webp", png(1)),
        ("1.json", '{"caption": 5}'),
        ("2.jpeg", png(2)),
        ("2.json", '{"long_caption": null, "text": "two"}'),
        ("3.png", png(3)),
        ("3.json", "{broken"),
        ("4.png", png(4)),
        ("4.json", "{broken"),
        ("4.txt", "four"),
        ("5.jpg", png(5)),
        ("5.txt", b"caf\xe9"),
        ("6.jfif", png(6)),
        ("6.txt", codecs.BOM_UTF8 + b"six"),
        ("7.jpg", png(7)),
        ("7.txt", "seven".encode("utf-16")),
        ("8.jpg", png(8)),
        ("8.json", '["a"]'),
        ("9.jpg", png(9)),
        ("9.txt", "a"),
        ("9.jpg", png(9)),
        ("10.txt", "no image"),
    ]
    captions, warned = read(tar(tmp_path / "a.tar", members))
    assert captions == ["zero\n", "two", "four", "six", "seven"]
    reasons = {text.split("sample ")[1].split(":")[0]: text for text in warned}
    assert list(reasons) == ["1", "3", "5", "8", "9", "10"]
    for sample, reason in (
        ("1", "a number: 5"),
        ("3", "no JSON"),
        ("5", "no UTF-8"),
        ("8", "json"),
        ("9", "9.jpg"),
    ):
        assert reason in reasons[sample]


def test_a_compressed_tar(tmp_path: Path):
    tar(
        tmp_path / "a.tar",
        [("0.png", png(0)), ("0.txt", "zero"), ("1.png", png(1)), ("1.txt", "one")],
        "w:gz",
    )
    assert read(tmp_path) == (["zero", "one"], [])


# --- damage --------------------------------------------------------------------------------------


def damaged(folder: Path, kind: str) -> str:
    """A shard of six pairs, ``b``, damaged; which of them can be read."""
    if kind in ("cut parquet", "empty parquet", "flipped parquet"):
        write_parquet(folder / "b.parquet", pairs(6, first=6))
        content = bytearray((folder / "b.parquet").read_bytes())
        page = pq.read_metadata(folder / "b.parquet").row_group(1).column(1).data_page_offset
        content[page : page + 40] = b"\xff" * 40
        cut = {"cut parquet": content[:-20], "empty parquet": b"", "flipped parquet": content}[kind]
        (folder / "b.parquet").write_bytes(cut)
        return "picture 6 picture 7 picture 8" if kind == "flipped parquet" else ""
    write_tar(folder / "b.tar", pairs(6, first=6), as_json=False)
    content = bytearray((folder / "b.tar").read_bytes())
    if kind == "flipped tar":
        content[512 * 8 + 100] ^= 255  # the third sample's header
    cut = {"empty tar": b"", "cut tar": content[: 512 * 8 + 100], "flipped tar": content}[kind]
    (folder / "b.tar").write_bytes(cut)
    return "" if kind == "empty tar" else "picture 6"  # more of the second might have followed


KINDS = ["cut parquet", "empty parquet", "flipped parquet", "cut tar", "empty tar", "flipped tar"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_shard_is_read_up_to_there_and_named(tmp_path: Path, kind: str):
    write_parquet(tmp_path / "a.parquet", pairs(6))
    readable = damaged(tmp_path, kind)
    captions, warned = read(tmp_path)
    text = " ".join(sorted(captions))
    assert text == " ".join([f"picture {i}" for i in range(6)]) + (
        f" {readable}" if readable else ""
    )
    name = "b.tar" if "tar" in kind else "b.parquet"
    place = f"after its first {len(readable.split()) // 2} rows" if readable else "the whole file"
    assert len(warned) == 1 and warned[0].startswith(
        f"passed over, {place}: {name}: cannot be read ("
    )
    assert "\n" not in warned[0] and warned[0].endswith(f"); mend it {WHEN_TO_MEND}")


def test_a_link_that_leads_nowhere_is_passed_over(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", pairs(2))
    (tmp_path / "b.parquet").symlink_to("nowhere.parquet")
    captions, warned = read(tmp_path)
    assert (
        captions == ["picture 0", "picture 1"]
        and "b.parquet: a link that leads nowhere" in warned[0]
    )


def test_a_file_that_cannot_be_reached_stops_the_run_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The disk may be back later; to go on without the file would train on other data."""
    write_shards(tmp_path, "parquet", [pairs(4)])
    stream = CaptionStream(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("uae.data.layouts.open", unreachable, raising=False)
        with pytest.raises(
            ValueError,
            match=r"000\.parquet: cannot be read now \(Input/output error\); when it can",
        ):
            stream.read()
    assert [row.caption for row in iter(stream.read, None)] == [f"picture {i}" for i in range(4)]


def unreachable(*arguments: Any) -> None:
    raise OSError(5, "Input/output error")


class Levels:
    """A task for ``fit``: learn the mean of images, whose order shows in the weights."""

    name = "levels"

    def __init__(self, path: Path, stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.fit_settings = FitSettings(
            num_steps=8, batch_size=2, learning_rate=0.1, warmup_steps=1
        )
        self.modules: dict[str, nn.Module] = {"level": nn.Linear(1, 1)}
        self.data = batches(path, pool_size=5)
        self.stop_at = stop_at

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == self.stop_at:
            raise KeyboardInterrupt
        images = torch.stack([sample.image.mean()[None] for sample in self.data.next_batch()])
        return ((self.modules["level"](images * 50) - 1) ** 2).mean(), {
            "skipped": float(self.data.stream.num_skipped)
        }

    def evaluate(self) -> dict[str, float]:
        return {}

    def export(self, folder: Path) -> None: ...

    def after_step(self, step: int) -> None: ...


def trained(path: Path, run: Path, stop_at: int | None = None) -> tuple[bytes, ...]:
    task = Levels(path, stop_at)
    fit(task, run, save_every=1)
    return tuple(p.detach().numpy().tobytes() for p in task.modules["level"].parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:passed over")
def test_a_run_over_a_damaged_shard_ends_as_if_never_stopped(tmp_path: Path, kind: str):
    """And as its advice says: with its files as they are it goes on; mended at once, that is named
    until undone."""
    data = tmp_path / "data"
    write_shards(data, "parquet", [pairs(6)])
    damaged(data, kind)
    whole = trained(data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(data, tmp_path / "run", stop_at=5)
    (shard,) = data.glob("b.*")
    content = shard.read_bytes()
    shard.write_bytes(b"mended")
    with pytest.raises(
        ValueError,
        match=rf"changed: {shard.name}\. Put them back as they were, or give another output",
    ):
        trained(data, tmp_path / "run")
    shard.unlink()
    with pytest.raises(ValueError, match=rf"removed: {shard.name}\."):
        trained(data, tmp_path / "run")
    trained(data, tmp_path / "another")  # the other advice
    shard.write_bytes(content)
    assert trained(data, tmp_path / "run") == whole
