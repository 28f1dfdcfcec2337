"""Image files of every kind a folder may hold, and the errors of those that are none."""

import numpy as np
import pytest
import torch
from PIL import Image

from uae.data.images import ImageError, list_images, read_image


def rgb(*color: int) -> torch.Tensor:
    return torch.tensor(color)[:, None, None].expand(3, 4, 6) / 255


def gradient() -> Image.Image:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
    return Image.fromarray(pixels)


def test_values_are_exact(tmp_path):
    gradient().save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    expected = torch.tensor(np.asarray(gradient())).permute(2, 0, 1) / 255
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, expected, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "tiff", "gif"])
def test_formats(tmp_path, suffix):
    Image.new("RGB", (6, 4), (250, 128, 10)).save(tmp_path / f"a.{suffix}")
    torch.testing.assert_close(read_image(tmp_path / f"a.{suffix}"), rgb(250, 128, 10), rtol=0, atol=4 / 255)


def palette() -> Image.Image:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image


MODES = {
    "palette": (palette(), {}, (10, 20, 30)),
    "transparent palette": (palette(), {"transparency": 1}, (255, 255, 255)),
    "grey": (Image.new("L", (6, 4), 77), {}, (77, 77, 77)),
    "grey and alpha": (Image.new("LA", (6, 4), (0, 51)), {}, (204, 204, 204)),
    "alpha over white": (Image.new("RGBA", (6, 4), (255, 0, 0, 102)), {}, (255, 153, 153)),
    "opaque": (Image.new("RGBA", (6, 4), (1, 2, 3, 255)), {}, (1, 2, 3)),
    "keyed colour": (Image.new("RGB", (6, 4), (9, 9, 9)), {"transparency": (9, 9, 9)}, (255, 255, 255)),
    "1-bit": (Image.new("1", (6, 4), 1), {}, (255, 255, 255)),
    "16-bit": (Image.fromarray(np.full((4, 6), 257 * 200, dtype=np.uint16)), {}, (200, 200, 200)),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(tmp_path, mode):
    image, options, expected = MODES[mode]
    image.save(tmp_path / "a.png", **options)
    torch.testing.assert_close(read_image(tmp_path / "a.png"), rgb(*expected), rtol=0, atol=1e-6)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    torch.testing.assert_close(read_image(tmp_path / "a.jpg"), rgb(255, 0, 0), rtol=0, atol=4 / 255)


def test_exif_rotation(tmp_path):
    image = Image.new("RGB", (6, 4), "black")
    image.paste("white", (0, 0, 3, 4))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise: the left becomes the top
    image.save(tmp_path / "a.png", exif=exif)
    shown = read_image(tmp_path / "a.png")
    assert shown.shape == (3, 6, 4)
    assert shown[:, :3].min() == 1
    assert shown[:, 3:].max() == 0


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    torch.testing.assert_close(read_image(tmp_path / f"a.{suffix}"), rgb(255, 0, 0))


def write_truncated(file):
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[:-900])


def write_bad_checksum(file):
    gradient().save(file)
    data = bytearray(file.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 0xFF
    file.write_bytes(bytes(data))


BROKEN = {
    "empty": (lambda file: file.write_bytes(b""), "empty"),
    "text": (lambda file: file.write_text("not an image"), "this is none"),
    "header only": (lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n"), "corrupt|this is none"),
    "truncated": (write_truncated, "corrupt or truncated"),
    "damaged": (write_bad_checksum, "corrupt or truncated"),
    "float": (lambda file: Image.new("F", (6, 4)).save(file, format="TIFF"), "floating-point"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_named_in_one_line(tmp_path, kind):
    write, message = BROKEN[kind]
    write(tmp_path / "broken.png")
    with pytest.raises(ImageError, match=message) as raised:
        read_image(tmp_path / "broken.png")
    assert "broken.png" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_decompression_bomb(tmp_path, monkeypatch):
    gradient().save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match=r"bomb\.png: too many pixels"):
        read_image(tmp_path / "bomb.png")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png")


def test_lists_recursively_in_natural_order(tmp_path):
    for name in ["10.png", "2.png", "b/1.JPG", "a/3.webp", "notes.txt", ".hidden.png", ".git/x.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listing = list_images(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in listing.files] == ["2.png", "10.png", "a/3.webp", "b/1.JPG"]
    assert listing.num_ignored == 1


def test_lists_files_as_given(tmp_path):
    for name in ["b.png", "a.png", "odd.dat"]:
        (tmp_path / name).touch()
    given = [tmp_path / "odd.dat", str(tmp_path / "b.png"), tmp_path]
    assert [file.name for file in list_images(given).files] == ["odd.dat", "b.png", "a.png"]


def test_nothing_to_list(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ImageError, match=r"found none \(1 other files\)"):
        list_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ImageError, match="no path given"):
        list_images([])
