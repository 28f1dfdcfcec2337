"""Image files of every kind a folder may hold, and the errors of those that are none."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, features

from uae.data.folders import list_images
from uae.images.read import ImageError, image_size, read_image, read_image_bytes


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
    torch.testing.assert_close(
        read_image(tmp_path / f"a.{suffix}"), rgb(250, 128, 10), rtol=0, atol=4 / 255
    )


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
    "keyed colour": (
        Image.new("RGB", (6, 4), (9, 9, 9)),
        {"transparency": (9, 9, 9)},
        (255, 255, 255),
    ),
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
    upright = read_image(tmp_path / "a.png")
    assert upright.shape == (3, 6, 4)
    assert upright[:, :3].min() == 1
    assert upright[:, 3:].max() == 0


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
    with pytest.raises(ImageError, match=r"gone\.png: expected an image file, found nothing there"):
        read_image(tmp_path / "gone.png")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(
        ImageError, match=r"pipe\.png: expected an image file, this is no regular file"
    ):
        read_image(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(
        ImageError, match=r"loop\.png: cannot be read: Too many levels of symbolic links"
    ):
        read_image(tmp_path / "loop.png")


def test_drawings_and_raw_files_are_named_and_their_previews_not_taken(tmp_path):
    gradient().save(tmp_path / "photo.NEF", format="TIFF")  # cameras write a preview so
    with pytest.raises(
        ImageError, match=r"photo\.NEF: a drawing or a camera's raw file \(\.NEF\); convert"
    ):
        read_image(tmp_path / "photo.NEF")


@pytest.mark.parametrize(
    "name", ["line\nbreak.png", os.fsdecode(b"latin-\xff.png"), "bell\x07.png"]
)
def test_any_name_is_told_on_one_line_of_valid_text(tmp_path, name):
    (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(ImageError, match="this is none") as raised:
        read_image(tmp_path / name)
    assert str(raised.value).encode().isascii()
    assert "\n" not in str(raised.value)


# --- 16 bits, transparent values, metadata -------------------------------------------------------


def chunk(kind: bytes, data: bytes, is_sound: bool = True) -> bytes:
    checksum = zlib.crc32(kind + data) ^ (not is_sound)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(samples: np.ndarray, bits: int, *chunks: bytes) -> bytes:
    """A PNG ``[h w c]`` as its specification says, with chunks between header and pixels."""
    height, width, channels = samples.shape
    header = struct.pack(
        ">IIBBBBB", width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0
    )
    if bits < 8:
        spread = (
            (samples[..., 0, None] >> np.arange(bits)[::-1] & 1)
            .reshape(height, -1)
            .astype(np.uint8)
        )
        rows = [np.packbits(row).tobytes() for row in spread]
    else:
        rows = [row.astype(f">u{bits // 8}").tobytes() for row in samples]
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def wide_samples(channels: int) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 65536, (5, 7, channels))


def over_white(samples: np.ndarray, alpha: np.ndarray) -> torch.Tensor:
    """8-bit RGB of 16-bit samples, by the definition."""
    blended = (65535 * (1 - alpha) + samples * alpha) / 257
    return (
        torch.tensor(np.broadcast_to(blended.round(), (*samples.shape[:2], 3)) / 255)
        .permute(2, 0, 1)
        .float()
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits(channels):
    samples = wide_samples(channels)
    alpha = samples[..., -1:] / 65535 if channels in (2, 4) else np.ones((5, 7, 1))
    expected = over_white(samples[..., : channels - (channels in (2, 4))], alpha)
    torch.testing.assert_close(read_image_bytes(png(samples, 16), "x"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_value_of_16_bits_is_compared_before_it_is_rounded(channels):
    samples = np.full((1, 3, channels), 30000)
    samples[0, 1] += 1  # the same in 8 bits
    samples[0, 2, 0] -= 1
    content = png(samples, 16, chunk(b"tRNS", struct.pack(">H", 30000) * channels))
    expected = torch.full((3, 1, 3), 117 / 255)
    expected[:, 0, 0] = 1
    torch.testing.assert_close(read_image_bytes(content, "x"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey_of_few_bits(bits):
    top = 2**bits - 1
    content = png(np.array([[[0], [top]]]), bits, chunk(b"tRNS", struct.pack(">H", top)))
    assert read_image_bytes(content, "x")[0, 0].tolist() == [0, 1]
    content = png(np.array([[[0], [top]]]), bits, chunk(b"tRNS", struct.pack(">H", 0)))
    assert read_image_bytes(content, "x")[0, 0].tolist() == [1, 1]
    if bits in (2, 4):
        content = png(np.array([[[0], [1]]]), bits, chunk(b"tRNS", struct.pack(">H", 1)))
        assert read_image_bytes(content, "x")[0, 0].tolist() == [0, 1]


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff_of_16_bits(tmp_path, compression):
    samples = wide_samples(1)[..., 0]
    Image.fromarray(samples.astype(np.uint16)).save(tmp_path / "a.tif", compression=compression)
    expected = over_white(samples[..., None], np.ones((5, 7, 1)))
    torch.testing.assert_close(read_image(tmp_path / "a.tif"), expected, rtol=0, atol=1e-6)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    at = content.index(struct.pack("<HHII", 262, 3, 1, 1))
    content[at : at + 12] = struct.pack("<HHII", 262, 3, 1, 0)  # counted from white
    inverted = over_white(65535 - samples[..., None], np.ones((5, 7, 1)))
    torch.testing.assert_close(read_image_bytes(bytes(content), "x"), inverted, rtol=0, atol=1e-6)


def tiff(samples: np.ndarray) -> bytes:
    """Uncompressed RGB or RGBA of 16 bits, as TIFF 6.0 says."""
    height, width, channels = samples.shape
    pixels = samples.astype("<u2").tobytes()
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 24),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(pixels)),
    ]
    tags += [(338, 3, 1, 2)] if channels == 4 else []
    directory = (
        struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        + bytes(4)
    )
    bits = struct.pack("<4H", 16, 16, 16, 16).ljust(16, b"\0")
    return b"II*\0" + struct.pack("<I", 24 + len(pixels)) + bits + pixels + directory


@pytest.mark.parametrize("channels", [3, 4])
def test_tiff_of_16_bit_colours(channels):
    samples = wide_samples(channels)
    alpha = samples[..., 3:] / 65535 if channels == 4 else np.ones((5, 7, 1))
    levels = read_image_bytes(tiff(samples), "x")
    torch.testing.assert_close(levels, over_white(samples[..., :3], alpha), rtol=0, atol=1e-6)


def test_grey_of_unknown_range_is_refused_and_of_16_bits_read(tmp_path):
    Image.fromarray(np.full((4, 6), 257 * 90, np.int32)).save(tmp_path / "a.tif")
    torch.testing.assert_close(read_image(tmp_path / "a.tif"), rgb(90, 90, 90))
    for value in (-1, 70000):
        Image.fromarray(np.full((4, 6), value, np.int32)).save(tmp_path / "a.tif")
        with pytest.raises(ImageError, match=f"pixels from {value} to {value}, of unknown range"):
            read_image(tmp_path / "a.tif")


IN_MEMORY = {  # pixels, and what is seen
    "La": ((50, 100), (205, 205, 205)),  # 50 of 100 is 50 %: 127 over white by 100 of 255
    "PA": ((1, 0), (255, 255, 255)),
    "RGBa": ((0, 0, 0, 102), (153, 153, 153)),
    "RGBX": ((1, 2, 3, 0), (1, 2, 3)),
    "CMYK": ((255, 0, 0, 0), (0, 255, 255)),
    "HSV": ((0, 255, 255), (255, 0, 0)),
    "YCbCr": ((255, 128, 128), (255, 255, 255)),
    "LAB": ((255, 128, 128), (255, 255, 255)),
}


@pytest.mark.parametrize("mode", IN_MEMORY)
def test_modes_that_some_formats_give(tmp_path, mode, monkeypatch):
    pixel, expected = IN_MEMORY[mode]
    image = Image.new(mode, (6, 4), pixel)
    image.format = "ANY"
    monkeypatch.setattr(Image, "open", lambda file: image.copy())
    (tmp_path / "a.png").write_bytes(b"x")
    torch.testing.assert_close(
        read_image(tmp_path / "a.png"), rgb(*expected), rtol=0, atol=1.01 / 255
    )


RARE = {
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".JPEG": "JPEG",
    ".jif": "JPEG",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".apng": "PNG",
    ".ppm": "PPM",
    ".tga": "TGA",
    ".ico": "ICO",
    ".qoi": "QOI",
}


@pytest.mark.parametrize("suffix", RARE)
def test_rarer_extensions_are_images(tmp_path, suffix):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.new("RGB", (16, 16), (250, 128, 10)).save(tmp_path / f"a{suffix}", format=RARE[suffix])
    (file,) = list_images(tmp_path).files
    expected = torch.tensor([250, 128, 10])[:, None, None] / 255
    torch.testing.assert_close(read_image(file), expected.expand(3, 16, 16), rtol=0, atol=4 / 255)


@pytest.mark.parametrize("suffix", [".heic", ".HEIC", ".jxl", ".svg", ".cr2", ".exr", ".psd"])
def test_images_that_cannot_be_read_are_listed_and_named(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    (file,) = list_images(tmp_path).files
    with pytest.raises(ImageError, match=f"a{suffix}: .*convert it to PNG"):
        read_image(file)


TEXT = {
    "huge": chunk(b"tEXt", b"workflow\0" + b"x" * 2_800_000),
    "huge, compressed": chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 5_000_000)),
    "huge, international": chunk(b"iTXt", b"a\0\0\0\0\0" + b"x" * 2_800_000),
    "much in all": b"".join(chunk(b"tEXt", b"%d\0" % i + b"x" * 900_000) for i in range(75)),
    "wrong checksum": chunk(b"tEXt", b"a\0b", is_sound=False),
    "broken profile": chunk(b"iCCP", b"x\0\7abc"),
    "broken EXIF": chunk(b"eXIf", b"no TIFF header"),
    "broken density": chunk(b"pHYs", b"1"),
    "broken animation": chunk(b"acTL", b"1"),
}


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("place", ["before", "after"])
def test_metadata_does_not_keep_a_png_from_being_read(kind, place):
    turned = chunk(
        b"eXIf", b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
    )
    samples = np.arange(4 * 6 * 3).reshape(4, 6, 3)
    metadata = TEXT[kind] if kind == "broken EXIF" else turned + TEXT[kind]
    content = png(samples, 8, metadata)
    if place == "after":
        content = png(samples, 8)
        content = content[:-12] + metadata + content[-12:]
    image = read_image_bytes(content, "x")
    upright = torch.tensor(samples / 255).permute(2, 0, 1).float()
    expected = upright if kind == "broken EXIF" else upright.rot90(-1, (1, 2))
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)
    if place == "before":
        assert image_size(content, "x") == tuple(image.shape[1:])


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


@pytest.mark.parametrize(
    "data",
    [
        segment(0xE0, b"JFIF\0"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff"),
        segment(0xED, b"Photoshop 3.0\08BIM\4"),
        segment(0xFE, b"x" * 65000),
    ],
)
def test_metadata_does_not_keep_a_jpeg_from_being_read(data):
    buffer = io.BytesIO()
    gradient().save(buffer, "JPEG")
    content = buffer.getvalue()
    expected = read_image_bytes(content, "x")
    assert torch.equal(read_image_bytes(content[:2] + data + content[2:], "x"), expected)


def test_broken_exif_does_not_keep_other_formats_from_being_read(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    for suffix, options in (
        (".webp", {"lossless": True}),
        (".avif", {"quality": 100, "subsampling": "4:4:4"}),
    ):
        if suffix == ".avif" and not features.check("avif"):
            continue
        file = tmp_path / f"a{suffix}"
        gradient().save(file, exif=exif, **options)
        expected = read_image(file)
        file.write_bytes(file.read_bytes().replace(b"MM\0*", b"ZZZZ"))
        assert torch.equal(read_image(file), expected)


@pytest.mark.parametrize(
    "tag", [(700, 3, 2, 0), (34675, 4, 2**31, 8), (34665, 4, 1, 2**32 - 1)], ids=str
)
def test_metadata_does_not_keep_a_tiff_from_being_read(tag):
    samples = wide_samples(3)
    content = bytearray(tiff(samples) + bytes(12))
    first = struct.unpack_from("<I", content, 4)[0]
    count = struct.unpack_from("<H", content, first)[0]
    struct.pack_into("<H", content, first, count + 1)
    struct.pack_into("<HHII", content, first + 2 + 12 * count, *tag)
    image = read_image_bytes(bytes(content), "x")
    torch.testing.assert_close(image, over_white(samples, np.ones((5, 7, 1))), rtol=0, atol=1e-6)
