"""What a run learns from is named when it is not what it was started with; copied and moved data is
the same."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_captions import batches, drawn, pairs, write_shards
from uae.data.inventory import FILE_NAME, Inventory, check_unchanged
from uae.data.training import FolderImages, check_same_files
from uae.world.data import SceneImages


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("1.png", "2.png", "sub/1.png", "sub/caf\xe9 +①.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), len(name), dtype=np.uint8)).save(folder / name)
    return folder


def start(run: Path, *photos: Path) -> None:
    """A run on these, up to its first checkpoint."""
    check_same_files(FolderImages([str(path) for path in photos], None), run)
    (run / "checkpoints" / "step_00000001").mkdir(parents=True, exist_ok=True)


def refusal(run: Path, *photos: Path) -> str:
    with pytest.raises(ValueError, match="cannot resume, the images are not those") as error:
        check_same_files(FolderImages([str(path) for path in photos], None), run)
    assert "\n" not in str(
        error.value
    ) and "Put them back as they were, or give another output" in str(error.value)
    return str(error.value)


def test_what_was_added_removed_and_changed_is_named_and_putting_it_back_helps(
    photos: Path, tmp_path: Path
):
    run = tmp_path / "run"
    start(run, photos)
    before = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(
        before[:-20] + bytes([before[-20] ^ 1]) + before[-19:]
    )  # of the same size
    shutil.copy(photos / "1.png", photos / "sub" / "3.png")
    (photos / "sub" / "1.png").rename(tmp_path / "aside.png")
    assert "added: sub/3.png; removed: sub/1.png; changed: 2.png." in refusal(run, photos)
    start(tmp_path / "other run", photos)
    (photos / "2.png").write_bytes(before)
    (tmp_path / "aside.png").rename(photos / "sub" / "1.png")
    (photos / "sub" / "3.png").unlink()
    check_same_files(FolderImages([str(photos)], None), run)
    (photos / "2.png").write_bytes(before[:-1])
    assert "changed: 2.png." in refusal(run, photos)


def test_many_are_counted(photos: Path, tmp_path: Path):
    start(tmp_path / "run", photos)
    for number in range(10, 23):
        shutil.copy(photos / "1.png", photos / f"{number}.png")
    assert "added: 10.png, 11.png, 12.png, 13.png, 14.png and 8 more." in refusal(
        tmp_path / "run", photos
    )


def test_copied_and_moved_data_is_the_same(photos: Path, tmp_path: Path):
    start(tmp_path / "run", photos, photos / "sub")
    elsewhere = tmp_path / "a" / "photos"
    shutil.copytree(photos, elsewhere, copy_function=shutil.copyfile)  # with another time of change
    os.utime(elsewhere / "1.png", (0, 0))
    shutil.copytree(tmp_path / "run", tmp_path / "moved run")
    check_same_files(
        FolderImages([str(elsewhere), str(elsewhere / "sub")], None), tmp_path / "moved run"
    )
    here = Path(os.path.relpath(photos))
    check_same_files(FolderImages([str(here), str(here / "sub")], None), tmp_path / "run")


def test_equal_names_in_two_folders_are_two_files(photos: Path, tmp_path: Path):
    both = [photos, tmp_path / "other" / "photos"]
    shutil.copytree(both[0], both[1])
    start(tmp_path / "run", *both)
    (both[1] / "1.png").write_bytes(b"new")
    assert "changed: 2:photos/1.png." in refusal(tmp_path / "run", *both)


def test_runs_that_have_no_inventory_go_on_and_those_without_a_checkpoint_begin_anew(
    photos: Path, tmp_path: Path
):
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "checkpoints" / "step_00000001").mkdir(parents=True)
    check_same_files(FolderImages([str(photos)], None), old)
    assert not (old / FILE_NAME).exists()  # nothing says that this is what it was started with
    check_same_files(FolderImages([str(photos)], None), new)
    (photos / "2.png").unlink()
    start(new, photos)
    check_same_files(FolderImages([str(photos)], None), new)
    check_same_files(SceneImages(), new)


def test_a_damaged_inventory_says_what_to_do(photos: Path, tmp_path: Path):
    run = tmp_path / "run"
    start(run, photos)
    for content in (
        b"",
        b"none",
        gzip.compress(b"{"),
        gzip.compress(b"[1]\n"),
        (run / FILE_NAME).read_bytes()[:-9],
    ):
        (run / FILE_NAME).write_bytes(content)
        with pytest.raises(ValueError, match="it is damaged; remove it to go on"):
            check_same_files(FolderImages([str(photos)], None), run)
    (run / FILE_NAME).unlink()
    check_same_files(FolderImages([str(photos)], None), run)


def test_of_very_many_files_names_and_sizes_are_compared(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    start(tmp_path / "run", photos)
    before = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(before[::-1])
    monkeypatch.setattr("uae.data.inventory.MAX_HASHED", 3)
    check_same_files(FolderImages([str(photos)], None), tmp_path / "run")
    (photos / "2.png").write_bytes(before * 2)
    assert "changed: 2.png." in refusal(tmp_path / "run", photos)


def test_more_than_one_part_is_listed_in_order(tmp_path: Path):
    files = [tmp_path / f"{number}.txt" for number in range(1203)]
    for number, file in enumerate(files):
        file.write_text("x" * (number % 7))
    listed = Inventory.of(files, [tmp_path])
    assert [state.size for state in listed.states.values()] == [
        number % 7 for number in range(1203)
    ]
    assert list(listed.states) == [file.name for file in files]
    assert Inventory.unpack(listed.pack()).states == listed.states
    check_unchanged(tmp_path / "run", listed, "files")
    assert (tmp_path / "run" / FILE_NAME).read_bytes() == listed.pack()


@pytest.mark.parametrize("layout", ["parquet", "webdataset", "metadata"])
def test_shards_that_changed_since_the_checkpoint_are_named(tmp_path: Path, layout: str):
    path = write_shards(tmp_path / "data", layout, [pairs(5), pairs(4, first=5)])
    whole = batches(path)
    drawn(whole, 2)
    state = whole.state_dict()
    moved = tmp_path / "elsewhere" / "other name"
    shutil.copytree(path, moved)
    resumed = batches(moved)
    resumed.load_state_dict(state)
    assert drawn(resumed, 6) == drawn(whole, 6)
    changed = next(file for file in sorted(moved.rglob("*")) if file.is_file())
    changed.write_bytes(changed.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match=rf"changed: {changed.relative_to(moved).as_posix()}\."):
        batches(moved).load_state_dict(state)
