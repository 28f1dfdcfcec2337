"""Writing images: one conversion to bytes, for files and for pages."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


def to_bytes(image: Float[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Values in [0, 1], clipped and rounded to k/255."""
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte()
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def save_png(path: Path, image: Float[Tensor, "3 h w"]) -> None:
    """Write an image in [0, 1]."""
    Image.fromarray(to_bytes(image)).save(path)


def to_png(image: Float[Tensor, "3 h w"]) -> bytes:
    """An image in [0, 1] as a file."""
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(buffer, format="PNG")
    return buffer.getvalue()


def png_address(image: Float[Tensor, "3 h w"]) -> str:
    """A ``data:`` address of the image as PNG."""
    return "data:image/png;base64," + base64.b64encode(to_png(image)).decode("ascii")
