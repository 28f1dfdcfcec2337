"""Pixels that Pillow does not give by itself: those beside broken or huge metadata, and 16 bits a
channel.

Pillow keeps the high byte of colours of 16 bits. Read again with the bytes' roles swapped, it keeps
the low one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BufferedReader, BytesIO

import numpy as np
from jaxtyping import Float
from PIL import Image

File = BufferedReader | BytesIO
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"  # how files begin
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# not APP1 (EXIF), nor APP14, which says what the colours are
JPEG_METADATA = {0xE0, *range(0xE2, 0xEE), 0xEF, 0xFE}
START_OF_SCAN = 0xDA
PIXEL_TAGS = {  # of TIFF
    *(256, 257, 258, 259, 266, 277, 284, 292, 293, 317),  # size, samples and coding
    *(262, 320, 332, 338, 339, 529, 530, 531, 532),  # colours
    *(273, 278, 279, 322, 323, 324, 325, 347),  # strips and tiles
    274,  # orientation
}
LOW_BYTE = {  # raw modes, by the one that gives the high byte; N is the machine's own order
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B",
}
GREY_AND_ALPHA = "LA;16B"


def bit_depth(file: File) -> int:
    """Of a PNG's samples."""
    file.seek(24)
    return file.read(1)[0]


def pixels_alone(file: File) -> BytesIO | None:
    """The image without metadata that could keep it from being read; None for formats in which
    Pillow does not mind.

    Sound EXIF stays where it says how the image is turned.
    """
    file.seek(0)
    content = file.read()
    if content.startswith(PNG):
        return BytesIO(PNG + b"".join(_pixel_chunks(content)))
    if content.startswith(JPEG):
        return BytesIO(JPEG + b"".join(_pixel_segments(content)))
    if content.startswith((b"II*\0", b"MM\0*")):
        return BytesIO(_with_pixel_tags(bytearray(content)))
    if content[4:8] == b"ftyp":  # AVIF, which says by other means how it is turned
        return BytesIO(content.replace(b"Exif", b"skip", 1))
    return None


def _pixel_chunks(content: bytes) -> Iterator[bytes]:
    at = len(PNG)
    while at + 8 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        chunk = content[at:end]
        if chunk[4:8] in PIXEL_CHUNKS or (chunk[4:8] == b"eXIf" and _is_sound(chunk)):
            yield chunk
        at = end


def _is_sound(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])


def _pixel_segments(content: bytes) -> Iterator[bytes]:
    at = len(JPEG)
    while content[at : at + 1] == b"\xff" and content[at + 1] != START_OF_SCAN:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        if content[at + 1] not in JPEG_METADATA:
            yield content[at:end]
        at = end
    yield content[at:]


def _with_pixel_tags(content: bytearray) -> bytearray:
    """A TIFF whose first directory has no others."""
    order = "<" if content[:2] == b"II" else ">"
    (first,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, first)
    for at in range(first + 2, first + 2 + 12 * count, 12):
        if struct.unpack_from(f"{order}H", content, at)[0] not in PIXEL_TAGS:
            an_unknown_byte = (0xFFFF, 1, 1, 0)
            struct.pack_into(f"{order}HHII", content, at, *an_unknown_byte)
    return content


def wide_channels(file: File, image: Image.Image) -> Float[np.ndarray, "h w c"] | None:
    """The values of an opened, unread image whose colours have 16 bits in the file: red, green,
    blue, or grey, and alpha if there is one. None for all others."""
    modes = {_raw_mode(tile) for tile in getattr(image, "tile", ())}
    if modes == {GREY_AND_ALPHA}:  # as many bits as a pixel of RGBA
        pairs = _read_as(file, {GREY_AND_ALPHA: "RGBA"})
        return pairs[..., ::2] * 256 + pairs[..., 1::2]
    if not modes or not modes <= LOW_BYTE.keys():
        return None
    return _read_as(file, {}) * 256 + _read_as(file, LOW_BYTE)


def _read_as(file: File, raw_modes: dict[str, str]) -> Float[np.ndarray, "h w c"]:
    """The image's bytes, unpacked by other raw modes than Pillow would choose."""
    file.seek(0)
    with Image.open(file) as image:
        image.tile = [_with_raw_mode(tile, raw_modes) for tile in image.tile]  # type: ignore
        return np.asarray(image).astype(np.float32)


def _raw_mode(tile) -> str:
    mode = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return mode if isinstance(mode, str) else ""


def _with_raw_mode(tile, raw_modes: dict[str, str]):
    mode = raw_modes.get(_raw_mode(tile), _raw_mode(tile))
    return tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))
