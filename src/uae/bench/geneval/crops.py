"""Images as GenEval opens them, and what its colour classifier is shown of an object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from uae.images.read import ImageError, check_file
from uae.utils.messages import one_line, printable

OUTSIDE_MASK = "#999"


def open_picture(file: Path) -> Image.Image:
    """RGB, the right way up by EXIF; transparency is dropped, as officially.

    Raises:
        ImageError: in one line, whatever is wrong with the file.
    """
    try:
        check_file(file)
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow's decoders raise errors of a dozen kinds
        raise ImageError(
            f"expected an image, {printable(file.name)} cannot be read ({one_line(error)}); "
            "replace the file"
        ) from error


def crop_object(image: Image.Image, mask: np.ndarray, box: np.ndarray) -> Image.Image:
    """The box, corners rounded half to even; grey outside the mask, black outside the image."""
    rgb = image.convert("RGB")
    grey = Image.new("RGB", rgb.size, OUTSIDE_MASK)
    shown = Image.composite(rgb, grey, Image.fromarray(mask.astype(bool)))
    left, top, right, bottom = (round(float(corner)) for corner in box[:4])
    return shown.crop((left, top, right, bottom))
