"""What the colour classifier is shown, pixel by pixel, and how images are opened."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bench.oracles import SHARED
from uae.bench.geneval.crops import crop_object, open_picture
from uae.images.read import ImageError


def test_crops_are_the_official_ones():
    path = SHARED / "oracles/geneval_crops.jsonl"
    if not path.exists():
        pytest.skip(f"needs {path.name}, published with the task and not part of the project")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    wrong = []
    for row in rows:
        given, official = row["input"], row["official"]
        pixels = base64.b64decode(given["pixels"])
        image = Image.frombytes(given["mode"], tuple(given["size"]), pixels)
        mask = np.array([[cell == "1" for cell in line] for line in given["mask"]])
        crop = crop_object(image, mask, np.array(given["box"], np.float32))
        is_same = crop.tobytes() == base64.b64decode(official["rgb"])
        if list(crop.size) != official["size"] or not is_same:
            wrong.append(row["id"])
    assert len(rows) >= 50 and wrong == []


def test_a_crop_by_hand():
    image = Image.new("RGB", (3, 3), (10, 20, 30))
    mask = np.zeros((3, 3), bool)
    mask[1, 1] = True
    crop = np.asarray(crop_object(image, mask, np.array([0.5, 0.5, 3.5, 2.5], np.float32)))
    assert crop.shape == (2, 4, 3)  # 0.5 and 2.5 are rounded to even
    assert crop[1].tolist() == [[153] * 3, [10, 20, 30], [153] * 3, [0] * 3]


def test_images_stand_upright_and_lose_transparency(tmp_path: Path):
    turned = Image.new("RGB", (4, 2), (200, 0, 0))
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "0.png", exif=exif)
    assert open_picture(tmp_path / "0.png").size == (2, 4)
    Image.new("RGBA", (1, 1), (1, 2, 3, 0)).save(tmp_path / "1.png")
    assert open_picture(tmp_path / "1.png").getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x89PNG\r\n\x1a\n" + b"0" * 40])
def test_a_broken_image_is_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "0.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"^expected an image, 0.png cannot be read .*replace"):
        open_picture(tmp_path / "0.png")
