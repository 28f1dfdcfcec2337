"""Resizing with the arithmetic of PIL or of torch, differentiable, and fitting an image to a size.

PIL resamples 8-bit images by a horizontal, then a vertical convolution whose coefficients
(antialiased filter, bicubic a = -0.5) are fixed-point numbers of 22 fractional bits, each pass
rounded half up and clipped to 0..255 (Pillow, ``Resample.c``). Repeated here in exact float64
integers, so that images of k/255 values give PIL's bits. Pillow 13 swaps the passes on some tall
images (one level of rounding apart); the horizontal pass stays first here, as in every earlier
version, so that scores do not depend on it. Rounding passes gradients straight through; clipping
stops them where it acts. Deviation: values other than k/255 are first rounded, as saving the image
would.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Resample = Literal["bicubic", "bilinear"]
PIL_FRACTION_BITS = 22
BAND_ROWS = 32  # output pixels per matrix product: long images stay banded instead of dense


def fit_to(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``[3, h, w]`` resized (bicubic, as PIL) until it covers ``size``, then cropped to its
    middle."""
    if tuple(image.shape[1:]) == size:
        return image
    scale = max(size[0] / image.shape[1], size[1] / image.shape[2])
    height, width = (
        max(edge, round(old * scale)) for edge, old in zip(size, image.shape[1:], strict=True)
    )
    resized = resize_like_pil(
        image[None], height, width, crop=max(height, width), resample="bicubic"
    )
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return resized[0, :, top : top + size[0], left : left + size[1]]


def center_crop(images: Float[Tensor, "B 3 h w"], crop: int) -> Float[Tensor, "B 3 _ _"]:
    """Cut each edge longer than ``crop`` to its middle ``crop`` pixels."""
    top, left = (max(0, (edge - crop) // 2) for edge in images.shape[-2:])
    return images[..., top : top + crop, left : left + crop]


def resize_like_torch(
    images: Float[Tensor, "B 3 h w"], height: int, width: int, resample: Resample
) -> Float[Tensor, "B 3 height width"]:
    """Floating-point resampling with antialiasing, as torchvision's ``resize`` of float tensors."""
    return torch.nn.functional.interpolate(
        images, size=(height, width), mode=resample, antialias=True, align_corners=False
    )


def resize_like_pil(
    images: Float[Tensor, "B 3 h w"], height: int, width: int, crop: int, resample: Resample
) -> Float[Tensor, "B 3 _ _"]:
    """``PIL.Image.resize((width, height))`` of the images held in 8 bits; only the central ``crop``
    is computed."""
    levels = images * 255
    levels = straight_through(levels.round(), levels).double()
    levels = resample_last_axis(levels, width, crop, resample)
    levels = resample_last_axis(levels.transpose(-1, -2), height, crop, resample).transpose(-1, -2)
    return (levels / 255).to(images.dtype)


def resample_last_axis(
    levels: Float[Tensor, "*rest n"], size: int, crop: int, resample: Resample
) -> Float[Tensor, "*rest m"]:
    """One pass: convolve, round half up, clip to 0..255; output pixels outside the central ``crop``
    are left out."""
    first = max(0, (size - crop) // 2)
    bands = pil_bands(levels.shape[-1], size, first, min(crop, size), resample)
    sums = torch.cat(
        [levels[..., lo:hi] @ weights.to(levels.device).T for lo, hi, weights in bands], dim=-1
    )
    smooth = sums / 2**PIL_FRACTION_BITS
    return straight_through((smooth + 0.5).floor(), smooth).clamp(0, 255)


def straight_through(
    rounded: Float[Tensor, "*s"], smooth: Float[Tensor, "*s"]
) -> Float[Tensor, "*s"]:
    """``rounded`` forward, the gradient of ``smooth`` backward."""
    return smooth + (rounded - smooth).detach() if smooth.requires_grad else rounded


@lru_cache(maxsize=32)
def pil_bands(
    in_size: int, out_size: int, first: int, count: int, resample: Resample
) -> list[tuple[int, int, Tensor]]:
    """The rows ``first .. first + count`` of PIL's resampling matrix, in blocks ``(lo, hi, weights
    [rows, hi - lo])``.

    Weights are integers (coefficient times 2^22) held in float64, where their sums with 8-bit
    pixels are exact.
    """
    starts, coefficients = pil_coefficients(in_size, out_size, resample)
    taps, bands = coefficients.shape[1], []
    for block in range(first, first + count, BAND_ROWS):
        rows = np.arange(block, min(block + BAND_ROWS, first + count))
        lo, hi = int(starts[rows[0]]), min(int(starts[rows[-1]]) + taps, in_size)
        dense = np.zeros((len(rows), hi - lo + taps))
        columns = starts[rows, None] - lo + np.arange(taps)
        np.put_along_axis(dense, columns, coefficients[rows], axis=1)
        bands.append((lo, hi, torch.from_numpy(dense[:, : hi - lo].copy())))
    return bands


def pil_coefficients(
    in_size: int, out_size: int, resample: Resample
) -> tuple[np.ndarray, np.ndarray]:
    """Of each output pixel its first input pixel ``[out]`` and fixed-point weights ``[out, taps]``,
    as in Pillow."""
    kernel, radius = (bicubic, 2.0) if resample == "bicubic" else (bilinear, 1.0)
    scale = in_size / out_size
    stretch = max(scale, 1.0)
    support = radius * stretch
    centers = (np.arange(out_size) + 0.5) * scale
    starts = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    stops = np.minimum((centers + support + 0.5).astype(np.int64), in_size)

    positions = starts[:, None] + np.arange(int((stops - starts).max()))
    weights = kernel((positions - centers[:, None] + 0.5) * (1.0 / stretch))
    weights[positions >= stops[:, None]] = 0.0
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # summed one after the other, as in C
    fixed = weights * 2**PIL_FRACTION_BITS
    return starts, np.trunc(fixed + np.copysign(0.5, fixed))


def bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def bicubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
