"""What belongs together, and what is left out with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from uae.bench.judge.pairing import Entries, Side, read_captions


def save(file: Path, color: str = "red") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(file)
    return file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("0.jpg", "1.jpg", "sub/2.png"):
        save(tmp_path / "source" / name)
    return tmp_path / "source"


def rows(file: Path, *values: object) -> Path:
    lines = (value if isinstance(value, str) else json.dumps(value) for value in values)
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def caption(image: str, text: str) -> dict[str, str]:
    return {"image": image, "caption": text}


def test_pictures_and_captions_of_both_sides(source: Path, tmp_path: Path):
    for name in ("recon_0.png", "1.png", "sub/recon_2.png"):
        save(tmp_path / "a" / name)
        save(tmp_path / "b" / name)
    for name in ("0.txt", "1.txt", "sub/2.txt"):
        (tmp_path / "a" / name).write_text(f"a of {name}\n")
    captions_b = rows(
        tmp_path / "b.jsonl",
        caption("0.jpg", "b of 0"),
        {"file_name": "1.png", "text": "b of 1"},
        {"name": "sub/2", "caption": "b of 2"},
    )
    entries = Entries(source, tmp_path / "a", tmp_path / "b", tmp_path / "a", captions_b)
    contest = entries.gather(entries.sources())
    assert [pair.name for pair in contest.pairs] == ["0.jpg", "1.jpg", "sub/2.png"]
    assert contest.pairs[0].a == Side("a of 0.txt", tmp_path / "a" / "recon_0.png")
    assert contest.pairs[2].b == Side("b of 2", tmp_path / "b" / "sub/recon_2.png")
    assert contest.left_out == {}
    assert contest.remarks == [f"{tmp_path / 'a'}: 3 other files ignored"]  # the captions


def test_missing_extra_and_corrupt_ones(source: Path, tmp_path: Path):
    for side in ("a", "b"):
        for name in ("0.png", "1.png", "stray.png"):
            save(tmp_path / side / name)
    (tmp_path / "b" / "1.png").write_text("no image")
    (tmp_path / "a" / "0.png").unlink()
    save(source / "3.png")
    save(tmp_path / "a" / "3.png")
    save(tmp_path / "b" / "3.png")
    entries = Entries(source, tmp_path / "a", tmp_path / "b")
    contest = entries.gather(entries.sources())
    assert [pair.name for pair in contest.pairs] == ["3.png"]
    assert contest.left_out["0.jpg"] == "no image of a"
    assert contest.left_out["sub/2.png"] == "no image of a, no image of b"
    assert "1.png" in contest.left_out["1.jpg"]
    assert any("stray.png belongs to no source" in remark for remark in contest.remarks)


def test_captions_that_are_broken_doubled_or_of_nothing(source: Path, tmp_path: Path):
    file = rows(
        tmp_path / "c.jsonl",
        caption("0.jpg", "zero"),
        "{broken",
        "[" * 5000,
        {"image": "1.jpg"},
        {"image": 1, "caption": "x"},
        caption("9.jpg", "nine"),
        caption("1.jpg", "one"),
        caption("1.jpg", "another"),
        caption("0.jpg", "zero"),
        caption("sub/2.png", "half \ud83d"),
    )
    names = [Path("0.jpg"), Path("1.jpg"), Path("sub/2.png")]
    captions, remarks = read_captions(file, names)
    assert captions == {"0.jpg": "zero", "sub/2.png": "half ?"}
    assert [remark.split(": ")[1] for remark in remarks[:5]] == [
        f"line {number}" for number in (2, 3, 4, 5, 6)
    ]
    assert "1.jpg has several captions" in remarks[5] and len(remarks) == 6


def test_a_caption_may_hold_what_ends_lines_elsewhere(source: Path, tmp_path: Path):
    file = tmp_path / "c.jsonl"
    file.write_text('{"image": "0.jpg", "caption": "a\u2028b\x85c"}\r\n', encoding="utf-8")
    captions, remarks = read_captions(file, [Path("0.jpg")])
    assert captions == {"0.jpg": "a\u2028b\x85c"} and remarks == []


def test_sides_that_do_not_match_are_refused(source: Path, tmp_path: Path):
    for sides in ((None,) * 4, (tmp_path, None, None, None), (None, None, None, tmp_path)):
        with pytest.raises(ValueError, match="expected the same of both sides"):
            Entries(source, *sides).check()
    empty = rows(tmp_path / "c.jsonl", caption("9.jpg", "x"))
    with pytest.raises(ValueError, match="expected at least one source with the work of both"):
        Entries(source, None, None, empty, empty).gather(["0.jpg"])
    with pytest.raises(ValueError, match=r"gone\.jsonl: expected a \.jsonl file of captions"):
        read_captions(tmp_path / "gone.jsonl", [])


def test_pictures_inside_the_folder_of_sources_are_no_sources(source: Path):
    save(source / "made" / "0.png")
    entries = Entries(source, source / "made", source / "made")
    assert list(entries.sources()) == ["0.jpg", "1.jpg", "sub/2.png"]
