"""Streamed pairs: three layouts, aspect buckets, a pool that shuffles, and exact resuming wherever
a run stops."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from uae.data.buckets import CaptionBatches, aspect_buckets, nearest_bucket
from uae.data.captions import CaptionStream, read_row
from uae.data.latents import Encoded, LatentCache, fingerprint
from uae.images.read import ImageError, image_size, read_image_bytes
from uae.utils.checkpoint import load_latest, save_checkpoint

LAYOUTS = ["parquet", "webdataset", "metadata"]
Pair = tuple[bytes, str]


def png(value: int, size: tuple[int, int] = (6, 6)) -> bytes:
    """A picture of one grey; ``size`` is (height, width)."""
    file = io.BytesIO()
    Image.new("RGB", size[::-1], (value, value, value)).save(file, "PNG")
    return file.getvalue()


def pairs(count: int, first: int = 0) -> list[Pair]:
    """Every third one is a landscape."""
    return [
        (png(i, (4, 8) if i % 3 == 0 else (6, 6)), f"picture {i}")
        for i in range(first, first + count)
    ]


def write_shards(folder: Path, layout: str, shards: list[list[Pair]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards):
        if layout == "parquet":
            write_parquet(folder / f"{number:03}.parquet", shard)
        elif layout == "webdataset":
            write_tar(folder / f"{number:03}.tar", shard, as_json=number % 2 == 1)
        else:
            write_folder(folder / f"part{number}", shard)
    return folder


def write_parquet(file: Path, shard: list[Pair]) -> None:
    images = [{"bytes": image, "path": None} for image, _ in shard]
    table = pa.table(
        {
            "image": images,
            "long_caption": [caption for _, caption in shard],
            "id": range(len(shard)),
        }
    )
    pq.write_table(table, file, row_group_size=3)


def write_tar(file: Path, shard: list[Pair], *, as_json: bool) -> None:
    with tarfile.open(file, "w") as tar:
        for index, (image, caption) in enumerate(shard):
            text = (
                ("json", json.dumps({"caption": caption, "width": 6}))
                if as_json
                else ("txt", caption)
            )
            for suffix, content in (("png", image), (text[0], text[1].encode())):
                info = tarfile.TarInfo(f"{index:04}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_folder(folder: Path, shard: list[Pair]) -> None:
    folder.mkdir()
    lines = [
        json.dumps({"file_name": f"{index}.png", "text": caption})
        for index, (_, caption) in enumerate(shard)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    for index, (image, _) in enumerate(shard):
        (folder / f"{index}.png").write_bytes(image)


def batches(path: Path, batch_size: int = 2, pool_size: int = 7, **settings) -> CaptionBatches:
    return CaptionBatches(path, [(6, 6), (4, 8)], batch_size, pool_size=pool_size, **settings)


def drawn(data: CaptionBatches, count: int) -> list[list[tuple]]:
    """Captions, first pixels and sizes of the next batches."""
    return [
        [(s.caption, s.image.flatten()[0].item(), s.image.shape) for s in data.next_batch()]
        for _ in range(count)
    ]


# --- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_every_pair_once_a_pass(tmp_path: Path, layout: str):
    every = pairs(12)
    stream = CaptionStream(write_shards(tmp_path, layout, [every[:5], every[5:8], every[8:]]))
    passes = []
    for _ in range(2):
        passes.append([row[:2] for row in iter(stream.read, None)])
        assert sorted(passes[-1]) == sorted(every)
    assert stream.pass_number == 2 and stream.num_skipped == 0
    assert passes[0] != passes[1]  # the shards' order


@pytest.mark.filterwarnings("ignore:passed over")
def test_columns_that_are_missing_are_named_beside_those_found(tmp_path: Path):
    pq.write_table(pa.table({"url": ["a"], "alt": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet.*long_caption.*found url, alt"):
        CaptionStream(tmp_path).read()


def test_a_path_without_pairs_is_refused(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png(0))
    with pytest.raises(ValueError, match=r"metadata\.jsonl"):
        CaptionStream(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CaptionStream(tmp_path / "nowhere")


def test_datasets_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("uae.data.captions.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install unified-autoencoder\[data\]"):
        CaptionStream(tmp_path)


def test_the_first_caption_that_says_something_is_taken():
    example = {
        "jpg": None,
        "png": {"bytes": png(1), "path": "x"},
        "txt": "short",
        "json": {"long_caption": "at length"},
    }
    assert read_row(example, Path("a.tar"))[1:] == ("at length", (6, 6))
    assert read_row({**example, "json": {"long_caption": " "}}, Path("a.tar")).caption == "short"


def test_unusable_pairs_are_left_out_and_counted(tmp_path: Path):
    noisy = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)).save(
        noisy, "PNG"
    )
    truncated = noisy.getvalue()[:-40]  # its header can be read
    good = pairs(4, first=1)
    bad_pairs = [(b"no image", "a"), (png(9), "  "), (truncated, "b")]
    write_shards(tmp_path, "parquet", [[*good[:2], *bad_pairs, *good[2:]]])
    data = batches(tmp_path, batch_size=1)
    with pytest.warns(UserWarning, match="left out") as warned:
        captions = [row[0] for batch in drawn(data, 4) for row in batch]
    assert sorted(captions) == [caption for _, caption in good]
    assert data.stream.num_skipped >= 2
    drawn(data, 3)
    assert data.stream.num_skipped >= 3
    messages = [str(warning.message) for warning in warned if warning.category is UserWarning]
    assert [message.split(".parquet ")[1].split(":")[0] for message in messages] == [
        "row 2",
        "row 3",
        "row 4",
    ]
    assert (
        "is none" in messages[0] and "empty or blank" in messages[1] and "truncated" in messages[2]
    )


def test_many_unusable_pairs_are_counted_and_twenty_are_named(tmp_path: Path):
    write_shards(tmp_path, "parquet", [[*pairs(2), *[(png(9), " ")] * 50]])
    stream = CaptionStream(tmp_path)
    with pytest.warns(UserWarning, match="left out") as warned:
        captions = [row.caption for _ in range(2) for row in iter(stream.read, None)]
    assert captions == ["picture 0", "picture 1"] * 2
    messages = [str(warning.message) for warning in warned if warning.category is UserWarning]
    assert (
        stream.num_skipped == 100 and len(messages) == 21 and "more than 20 pairs" in messages[-1]
    )


def test_an_image_beside_a_json_that_names_it():
    """As LLaVA's conversations are packed; a string that is no file is one bad pair."""
    row = {"image": "0001.jpg", "caption": "a"}
    assert read_row(
        {"jpg": {"bytes": png(1), "path": "x"}, "json": row}, Path("a.tar")
    ).image == png(1)
    for name in ("iVBOR" * 2000, "a\0b"):
        with pytest.raises(ImageError, match="image") as error:
            read_row({"image": name, "caption": "a"}, Path("a.parquet"))
        assert len(str(error.value)) < 300


def test_nothing_usable_is_an_error(tmp_path: Path):
    write_shards(tmp_path, "parquet", [[(b"no image", "a")]])
    with (
        pytest.warns(UserWarning, match="this is none"),
        pytest.raises(ValueError, match="none that can be used"),
    ):
        batches(tmp_path)


# --- sizes ---------------------------------------------------------------------------------------


def test_buckets_by_hand():
    assert aspect_buckets(512, 64, 3072) == (
        (384, 640),
        (384, 704),
        (448, 576),
        (512, 512),
        (576, 448),
        (640, 384),
        (704, 384),
    )
    assert aspect_buckets(48, 8, 48) == ((48, 48),)
    with pytest.raises(ValueError, match="multiples of 64"):
        aspect_buckets(500, 64, 3072)


def test_nearest_bucket_by_hand():
    buckets = aspect_buckets(512, 64, 3072)
    assert [
        buckets[nearest_bucket(size, buckets)]
        for size in ((900, 900), (1080, 1920), (4000, 3000), (9, 1))
    ] == [
        (512, 512),
        (384, 704),
        (576, 448),
        (704, 384),
    ]


def test_the_header_says_the_size_that_is_read():
    turned = io.BytesIO()
    image = Image.new("RGB", (10, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(turned, "JPEG", exif=exif)
    for content, size in ((turned.getvalue(), (10, 4)), (png(0, (3, 5)), (3, 5))):
        assert image_size(content, "x") == size == tuple(read_image_bytes(content, "x").shape[1:])


def test_a_batch_has_one_size_and_its_own_pixels(tmp_path: Path):
    every = pairs(12)
    data = batches(write_shards(tmp_path, "parquet", [every]))
    for batch in drawn(data, 6):
        numbers = [int(caption.split()[1]) for caption, _, _ in batch]
        assert len({shape for _, _, shape in batch}) == 1
        for number, (_, pixel, shape) in zip(numbers, batch, strict=True):
            assert shape == ((3, 4, 8) if number % 3 == 0 else (3, 6, 6))
            assert pixel == pytest.approx(number / 255)


def test_a_pool_that_could_hold_no_batch_is_refused(tmp_path: Path):
    write_shards(tmp_path, "parquet", [pairs(4)])
    with pytest.raises(ValueError, match="at least 7 rows"):
        batches(tmp_path, batch_size=4, pool_size=6)


# --- order and resuming --------------------------------------------------------------------------


def test_a_pass_draws_every_pair_once_in_a_new_order(tmp_path: Path):
    path = write_shards(
        tmp_path, "parquet", [pairs(6), pairs(6, first=6)]
    )  # 4 landscapes, 8 squares
    data = batches(path)
    first, second = ([row[0] for batch in drawn(data, 6) for row in batch] for _ in range(2))
    assert sorted(first) == sorted(second) == sorted(caption for _, caption in pairs(12))
    assert first != second
    assert [row[0] for batch in drawn(batches(path, seed=1), 6) for row in batch] != first


def test_held_out_pairs_never_come(tmp_path: Path):
    path = write_shards(tmp_path, "webdataset", [pairs(5), pairs(5, first=5)])
    data = batches(path, num_held_out=3)
    held_out = [sample.caption for sample in data.held_out]
    assert (
        held_out == [sample.caption for sample in batches(path, num_held_out=3).held_out]
        and len(set(held_out)) == 3
    )
    captions = Counter(row[0] for batch in drawn(data, 14) for row in batch)
    assert captions.keys() == {caption for _, caption in pairs(10)} - set(held_out)
    with pytest.raises(ValueError, match="beside 10 held out, found 10 in all"):
        batches(path, num_held_out=10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resuming_at_any_step_gives_the_same_batches(tmp_path: Path, layout: str):
    path = write_shards(
        tmp_path / "data", layout, [pairs(7), pairs(4, first=7), pairs(6, first=11)]
    )
    whole = batches(path, num_held_out=1)
    states, expected = [], []
    for _ in range(18):  # two passes and more
        states.append(whole.state_dict())
        expected += drawn(whole, 1)
    assert whole.stream.pass_number >= 2
    for step in range(0, 18, 3):
        save_checkpoint(tmp_path / "run", step, {}, {"data": states[step]})
        checkpoint = load_latest(tmp_path / "run")
        assert checkpoint is not None
        resumed = batches(path, num_held_out=1)
        resumed.load_state_dict(checkpoint.state["data"])
        assert str(resumed.state_dict()) == str(states[step])  # torch shows small tensors in full
        assert drawn(resumed, 18 - step) == expected[step:], step


def test_other_files_or_settings_are_refused(tmp_path: Path):
    write_shards(tmp_path, "parquet", [pairs(6)])
    state = batches(tmp_path).state_dict()
    with pytest.raises(ValueError, match="pool_size: was 7, now 8"):
        batches(tmp_path, pool_size=8).load_state_dict(state)
    write_parquet(tmp_path / "more.parquet", pairs(6, first=6))
    with pytest.raises(
        ValueError,
        match=r"the shards and images are not those .* added: more\.parquet\. Put them back",
    ):
        batches(tmp_path).load_state_dict(state)
    (tmp_path / "more.parquet").unlink()
    batches(tmp_path).load_state_dict(state)


def test_a_checkpoint_of_before_resumes_where_it_was(tmp_path: Path):
    """It holds a place of ``datasets``, the shards' names among the settings, no inventory and no
    names of rows."""
    chunks = {"shard_idx": 0, "shard_example_idx": 0, "type": "ArrowExamplesIterable"}
    arrow = {
        "examples_iterable": {**chunks, "shard_example_idx": 6},
        "previous_state": {**chunks, "shard_example_idx": 3},
        "batch_idx": 5,
        "num_chunks_since_previous_state": 2,
        "cropped_chunk_length": 0,
        "type": "RebatchedArrowExamplesIterable",
    }
    places = {
        "parquet": {"examples_iterable": arrow, "epoch": 0},
        "metadata": {"examples_iterable": arrow, "epoch": 0},
        "webdataset": {
            "examples_iterable": {
                "shard_idx": 0,
                "shard_example_idx": 5,
                "type": "ExamplesIterable",
            }
        },
    }
    for layout, place in places.items():
        path = write_shards(tmp_path / layout, layout, [pairs(9)])
        whole = batches(path, batch_size=1, pool_size=4)
        drawn(whole, 2)
        state = whole.state_dict()
        assert state["stream"]["within"] == 5
        state["stream"]["within"] = place
        state["settings"]["shards"] = ["/".join(shard.parts[-2:]) for shard in whole.stream.shards]
        del state["files"], state["pool_names"]
        resumed = batches(path, batch_size=1, pool_size=4)
        resumed.load_state_dict(state)
        assert drawn(resumed, 9) == drawn(whole, 9)
        state["settings"]["shards"] = ["other/000.parquet"]
        with pytest.raises(ValueError, match="shards: was"):
            resumed.load_state_dict(state)


# --- the cache -----------------------------------------------------------------------------------


def test_cache_gives_back_the_bits_of_the_same_models_only(tmp_path: Path):
    weights = {"weight": torch.randn(3, 2)}
    cache = LatentCache(tmp_path, fingerprint(weights, "template"))
    encoded = Encoded(torch.randn(4, 2, 3), torch.randn(5, 7).bfloat16())
    assert cache.load("one") is None
    cache.save("one", encoded)
    hit = cache.load("one")
    assert hit is not None and all(torch.equal(a, b) for a, b in zip(hit, encoded, strict=True))
    assert cache.load("two") is None
    changed = {"weight": weights["weight"] + torch.tensor([[0.0, 0.0], [1e-3, 0.0], [0.0, 0.0]])}
    for other in (fingerprint(changed, "template"), fingerprint(weights, "other template")):
        assert LatentCache(tmp_path, other).load("one") is None


def test_a_damaged_cache_file_is_computed_anew(tmp_path: Path):
    cache = LatentCache(tmp_path, "x")
    cache.save("one", Encoded(torch.zeros(1, 1, 1), torch.zeros(1, 1)))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    assert cache.load("one") is None
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [file.name]
