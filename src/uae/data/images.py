"""Reading image files: whatever a user's folder holds becomes ``[3 h w]`` in [0, 1], or one clear error.

PNG, JPEG, WebP, BMP, GIF and TIFF of any mode: palettes, greyscale, 1-bit, CMYK; 16 bits are reduced to 8;
transparency is laid over white; EXIF rotation is applied; of an animation the first frame is taken. Values are k/255.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
ORIENTATION = 0x0112  # the EXIF tag; from 5 on, height and width change places


class ImageError(ValueError):
    """A file that can't be read as an image; the message is one line: the file, what came, what to do."""


class ImageListing(NamedTuple):
    """What ``list_images`` found."""

    files: list[Path]
    num_ignored: int
    """Files in the given folders whose extension is not an image's."""


def list_images(paths: Iterable[str | Path] | str | Path) -> ImageListing:
    """The image files among files and folders (searched recursively, in natural order: 2.png before 10.png).

    A file given by name is kept whatever its extension; hidden files and folders are passed over.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    files, num_ignored = [], 0
    for path in map(Path, paths):
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            found = folder_files(path)
            images = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES]
            files += images
            num_ignored += len(found) - len(images)
        else:
            raise FileNotFoundError(f"{path}: expected an image file or a folder of images, found nothing there")
    files = list(dict.fromkeys(files))
    if not files:
        where = ", ".join(map(str, paths)) or "no path given"
        raise ImageError(f"{where}: expected images ({' '.join(sorted(IMAGE_SUFFIXES))}), found none "
                         f"({num_ignored} other files)")  # fmt: skip
    return ImageListing(files, num_ignored)


def folder_files(folder: Path) -> list[Path]:
    """All files below a folder in natural order, hidden ones left out."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent) / name for name in files if not name.startswith(".")]
    return sorted(found, key=lambda file: natural_key(file.relative_to(folder)))


def natural_key(path: Path) -> list[list[tuple[bool, int, str]]]:
    """Sorts numbers inside names by value."""
    return [
        [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"([0-9]+)", name.lower())]
        for name in path.parts
    ]


def read_image(path: str | Path) -> Float[Tensor, "3 h w"]:
    """An image file as RGB in [0, 1]."""
    return _to_tensor(open_rgb(path))


def read_image_bytes(content: bytes, name: str | Path) -> Float[Tensor, "3 h w"]:
    """The content of an image file as ``read_image`` reads it; ``name`` is for messages."""
    with _one_error(name):
        return _to_tensor(_decode(io.BytesIO(content), name))


def open_rgb(path: str | Path) -> Image.Image:
    """An image file as 8-bit RGB, the right way up, fully decoded."""
    path = Path(path)
    with _one_error(path):
        if path.is_file() and path.stat().st_size == 0:
            raise ImageError(f"{path}: expected an image, the file is empty (0 bytes)")
        return _decode(path, path)


def image_size(content: bytes, name: str | Path) -> tuple[int, int]:
    """``(height, width)`` of the image that ``read_image_bytes`` would give, from the file's header alone."""
    with _one_error(name), Image.open(io.BytesIO(content)) as image:
        is_turned = "exif" in image.info and image.getexif().get(ORIENTATION, 1) >= 5
        return (image.width, image.height) if is_turned else (image.height, image.width)


def _decode(file: Path | io.BytesIO, name: str | Path) -> Image.Image:
    with Image.open(file) as image:
        if image.mode == "F":
            raise ImageError(f"{name}: floating-point pixels of unknown range; convert it to PNG")
        return to_rgb(ImageOps.exif_transpose(image))


def _to_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w").float() / 255


@contextmanager
def _one_error(name: str | Path) -> Iterator[None]:
    """Whatever Pillow raises, as an ImageError of one line."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: expected an image file, found nothing there") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: expected an image, this is none (or of a format Pillow does not read); "
                         "convert it to PNG or JPEG") from None  # fmt: skip
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too many pixels to unpack safely; scale it down ({one_line(error)})") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error …
        raise ImageError(f"{name}: corrupt or truncated image ({one_line(error)}); replace the file") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB, transparency over white."""
    if image.mode in SIXTEEN_BIT_MODES:
        levels = np.asarray(image).astype(np.float64).clip(0, 65535) / 257
        return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
