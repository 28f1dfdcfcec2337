"""What an endpoint is sent of an image: the file's own bytes, or a PNG of what people see."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from uae.data.longcap.endpoint import data_url


def sent(file) -> tuple[str, bytes]:
    head, content = data_url(file).split(",")
    return head, base64.b64decode(content)


def test_a_plain_file_is_sent_as_it_is(tmp_path):
    Image.new("RGB", (6, 4), "red").save(tmp_path / "a.jpg")
    assert sent(tmp_path / "a.jpg") == ("data:image/jpeg;base64", (tmp_path / "a.jpg").read_bytes())


def huge_text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 2_000_000, zip=True)
    return info


@pytest.mark.parametrize(
    "options", [{"pnginfo": huge_text()}, {"transparency": (9, 9, 9)}, {"exif": b"no header"}]
)
def test_of_other_files_what_people_see_is_sent(tmp_path, options):
    image = Image.new("RGB", (6, 4), "red")
    image.putpixel((0, 0), (9, 9, 9))
    image.save(tmp_path / "a.png", **options)
    head, content = sent(tmp_path / "a.png")
    assert head == "data:image/png;base64"
    assert len(content) < 10_000
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    expected = np.asarray(image).copy()
    if "transparency" in options:
        expected[0, 0] = 255
    assert np.array_equal(pixels, expected)


def test_a_broken_checksum_beside_the_pixels(tmp_path):
    Image.new("RGB", (6, 4), "red").save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    text = struct.pack(">I", 3) + b"tEXt" + b"a\0b" + struct.pack(">I", zlib.crc32(b"no"))
    (tmp_path / "a.png").write_bytes(content[:33] + text + content[33:])
    assert sent(tmp_path / "a.png")[0] == "data:image/png;base64"
