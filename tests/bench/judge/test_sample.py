"""A draw of images that depends on their content and the seed alone."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from uae.bench.judge.sample import draw, draw_images, find_images, list_text, read_list


def write(folder: Path, names: dict[str, bytes]) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for name, content in names.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in names}


def test_a_draw_by_hand():
    """The order of sha256("SEED KEY")."""
    keys = [str(i) for i in range(30)]
    by_hand = sorted(keys, key=lambda key: hashlib.sha256(b"7 " + key.encode()).hexdigest())
    assert draw(reversed(keys), 10, seed=7) == by_hand[:10]
    assert draw(keys, 10, seed=8) != by_hand[:10]
    assert draw(["x", "x", "y"], 5, seed=0) == draw(["y", "x"], 5, seed=0)
    assert draw(keys, 12, seed=7)[:10] == by_hand[:10]  # more of them begins with the same


def test_names_and_order_do_not_matter(tmp_path: Path):
    files = write(tmp_path / "one", {f"{i}.png": bytes([i]) for i in range(20)})
    renamed = write(tmp_path / "two", {f"{99 - i}.png": bytes([i]) for i in range(20)})
    drawn, other = (draw_images(each, 8, seed=0) for each in (files, renamed))
    assert list(drawn.values()) == list(other.values()) and len(drawn) == 8
    assert [int(name[:-4]) for name in drawn] == [99 - int(name[:-4]) for name in other]


def test_equal_and_unreadable_files(tmp_path: Path):
    files = write(tmp_path, {"b.png": b"same", "a.png": b"same", "c.png": b"other"})
    drawn = draw_images({**files, "gone.png": tmp_path / "gone.png"}, 10, seed=0)
    assert sorted(drawn) == ["a.png", "c.png"]


def test_a_list_is_read_back_and_checked_by_other_tools(tmp_path: Path):
    files = write(tmp_path / "images", {f"{i} x.png": bytes([i]) for i in range(5)})
    drawn = draw_images(files, 3, seed=1)
    (tmp_path / "list.txt").write_text(list_text(drawn))
    assert find_images(files, read_list(tmp_path / "list.txt")) == drawn
    check = ["sha256sum", "--check", "--strict", str(tmp_path / "list.txt")]
    assert subprocess.run(check, cwd=tmp_path / "images", capture_output=True).returncode == 0
    next(iter(files[name] for name in drawn)).write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"expected all 3 images of the list, 1 are not among"):
        find_images(files, read_list(tmp_path / "list.txt"))
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(ValueError, match=r"list\.txt: line 1: expected SHA256, two spaces"):
        read_list(tmp_path / "list.txt")
