"""Reading image files: whatever a user's folder holds becomes ``[3 h w]`` in [0, 1], or one clear
error.

Every format and mode that Pillow reads: palettes, greyscale, 1-bit, CMYK; transparency is laid over
white, then 16 bits are rounded to 8; the rotation of EXIF is applied; of an animation the first
frame is taken. Values are k/255. Metadata that is broken or huge does not matter where the pixels
are sound.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from uae.images.pixels import File, bit_depth, pixels_alone, wide_channels
from uae.utils.messages import one_line, printable

_DRAWINGS = ".ai .emf .eps .svg .svgz .wmf"
_RAW_FILES = (  # of cameras; Pillow finds a small preview in some
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mrw .nef .nrw .orf .pef .raf .raw "
    ".rw2 .rwl .sr2 .srf .srw .x3f"
)
_PIXELS = (  # whether one can be read here, reading shows
    ".apng .avif .avifs .bmp .bpg .cur .dds .dib .exr .gif .heic .heif .hif .icb .icns .ico .j2c "
    ".j2k .jfi .jfif .jif .jls .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .jxl .jxr .mpo .pbm .pcx .pfm "
    ".pgm .png .pnm .ppm .psb .psd .qoi .sgi .tga .tif .tiff .vda .vst .webp .xbm .xcf .xpm"
)
NOT_PIXELS = frozenset(f"{_DRAWINGS} {_RAW_FILES}".split())
IMAGE_SUFFIXES = NOT_PIXELS | frozenset(_PIXELS.split())  # what is an image to people
GREY_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION = 258, 262, 274  # tags of TIFF and EXIF
TURNS = {  # by orientation; from 5 on, height and width change places
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Read = TypeVar("Read")


class ImageError(ValueError):
    """A file that can't be read as an image; the message is one line: the file, what came, what to
    do."""


def read_image(path: str | Path) -> Float[Tensor, "3 h w"]:
    """An image file as RGB in [0, 1]."""
    return _to_tensor(open_rgb(path))


def read_image_bytes(content: bytes, name: str | Path) -> Float[Tensor, "3 h w"]:
    """The content of an image file as ``read_image`` reads it; ``name`` is for messages."""
    with _one_error(name):
        return _to_tensor(_decode(BytesIO(content)))


def read_content(path: str | Path) -> bytes:
    """The bytes of an image file, not decoded."""
    path = Path(path)
    with _one_error(path):
        check_file(path)
        return path.read_bytes()


def open_rgb(path: str | Path) -> Image.Image:
    """An image file as 8-bit RGB, the right way up, fully decoded."""
    path = Path(path)
    with _one_error(path):
        check_file(path)
        with open(path, "rb") as file:
            return _decode(file)


def image_size(content: bytes, name: str | Path) -> tuple[int, int]:
    """``(height, width)`` of the image that ``read_image_bytes`` would give, from the file's header
    alone."""
    with _one_error(name):
        return _despite_metadata(BytesIO(content), _shown_size)


def check_file(path: Path) -> None:
    """An ImageError for what can be told without decoding. A pipe would be waited for without
    end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("expected an image file, this is no regular file")
    if status.st_size == 0:
        raise ImageError("expected an image, the file is empty (0 bytes)")
    if path.suffix.lower() in NOT_PIXELS:
        raise ImageError(
            f"a drawing or a camera's raw file ({path.suffix}); convert it to PNG or JPEG"
        )


@contextmanager
def _one_error(name: str | Path) -> Iterator[None]:
    """Whatever Pillow or the disk raises, as an ImageError of one line that begins with the
    name."""
    try:
        yield
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error …
    except Exception as error:
        raise ImageError(f"{printable(name)}: {_explained(error)}") from error


def _explained(error: Exception) -> str:
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "expected an image file, found nothing there"
    if isinstance(error, UnidentifiedImageError):
        return (
            "expected an image, this is none (or of a format Pillow does not read); convert it "
            "to PNG or JPEG"
        )
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels to unpack safely; scale it down ({one_line(error)})"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {os.strerror(error.errno)}"
    return f"corrupt or truncated image ({one_line(error)}); replace the file"


# --- decoding ------------------------------------------------------------------------------------


def _decode(file: File) -> Image.Image:
    return _despite_metadata(file, _read_rgb)


def _despite_metadata(file: File, reader: Callable[[File], Read]) -> Read:
    """``read(file)``; where that fails, of the pixels alone."""
    try:
        return reader(file)
    except (ImageError, Image.DecompressionBombError):
        raise
    except Exception as error:
        try:
            pixels = pixels_alone(file)
            if pixels is not None:
                return reader(pixels)
        except Exception:  # then the pixels are not sound either
            raise error from None
        raise


def _shown_size(file: File) -> tuple[int, int]:
    file.seek(0)
    with Image.open(file) as image:
        # of a TIFF, Pillow has turned the size
        is_turned = image.format != "TIFF" and _orientation(image) >= 5
        return (image.width, image.height) if is_turned else (image.height, image.width)


def _read_rgb(file: File) -> Image.Image:
    file.seek(0)
    with Image.open(file) as image:
        levels = wide_channels(file, image)
    file.seek(0)
    with Image.open(file) as image:
        image.load()
        if levels is not None:
            rgb = _over_white(levels, 65535, image.info.get("transparency"))
        elif image.mode in GREY_MODES:
            rgb = _grey_to_rgb(image)
        else:
            rgb = _to_rgb(image, bit_depth(file) if image.format == "PNG" else 8)
        turn = TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """As EXIF or XMP says; 1, the right way up, where they are broken or say nothing known."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # whatever a parser of damaged bytes raises
        return 1
    return orientation if isinstance(orientation, int) and orientation in TURNS else 1


def _grey_to_rgb(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits; TIFF says of how many, and may count from white."""
    tags = getattr(image, "tag_v2", {})
    bits = 16 if image.mode == "I" else tags.get(BITS_PER_SAMPLE, (16,))[0]
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() >= 2**bits:
        raise ImageError(
            f"pixels from {levels.min()} to {levels.max()}, of unknown range; convert it to PNG"
        )
    if tags.get(PHOTOMETRIC) == 0:
        levels = 2**bits - 1 - levels.astype(np.int32)
    return _over_white(
        levels[..., None].astype(np.float32), 2**bits - 1, image.info.get("transparency")
    )


def _over_white(
    levels: np.ndarray, white: int, transparent: int | tuple[int, ...] | None
) -> Image.Image:
    """Grey or colour ``[h w c]`` of values up to ``white``, with alpha or one transparent value, as
    8-bit RGB."""
    has_alpha = levels.shape[-1] in (2, 4)
    color = levels[..., :-1] if has_alpha else levels
    alpha = levels[..., -1:] / white if has_alpha else np.float32(1)
    if transparent is not None:
        alpha = (color != np.asarray(transparent)).any(-1, keepdims=True)
    eight_bits = ((white + (color - white) * alpha) * (255 / white)).round().astype(np.uint8)
    return Image.fromarray(
        np.ascontiguousarray(np.broadcast_to(eight_bits, (*eight_bits.shape[:2], 3)))
    )


def _to_rgb(image: Image.Image, bits: int) -> Image.Image:
    """Any mode of 8 bits to RGB, transparency over white; ``bits`` a transparent grey is given
    with."""
    if image.mode == "F":
        raise ImageError("floating-point pixels of unknown range; convert it to PNG")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        if image.mode in ("L", "RGB"):
            image.info["transparency"] = _in_8_bits(image.info["transparency"], bits)
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _in_8_bits(transparent: int | tuple[int, ...], bits: int) -> int | tuple[int, ...]:
    """A PNG's transparent value, of as many bits as its samples, on the scale of the pixels that
    Pillow gives."""
    if isinstance(transparent, tuple):
        return tuple(value & 255 for value in transparent)
    return (transparent & 2**bits - 1) * 255 // (2**bits - 1)


def _to_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w").float() / 255
