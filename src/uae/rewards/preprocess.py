"""Pixels as a similarity backbone expects them: one differentiable preprocessing for reward and metric.

``y = (crop(resize(x)) - mean) / std``, with each published checkpoint's own arithmetic:

- CLIP, LongCLIP, DINOv2 resample 8-bit images with PIL: a horizontal, then a vertical convolution whose
  coefficients (antialiased filter, bicubic a = -0.5) are fixed-point numbers of 22 fractional bits, each pass
  rounded half up and clipped to 0..255 (Pillow, ``Resample.c``). Repeated here in exact float64 integers, so that
  images of k/255 values give PIL's bits. Pillow 13 swaps the passes on some tall images (one level of rounding
  apart); we keep the horizontal pass first, as every earlier version does, so that scores do not depend on it.
- DINOv3 rescales first and resamples in floating point (``torch.nn.functional.interpolate``, antialias).

Rounding passes gradients straight through; clipping stops them where it acts. Images already of the right size
are only normalised. Deviation: where PIL's own integers would be, other values are first rounded to k/255, as
saving the image would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from uae.utils.weights import read_json

Resample = Literal["bicubic", "bilinear"]

PIL_FRACTION_BITS = 22
BAND_ROWS = 32  # output pixels per matrix product: long images stay banded instead of dense


@dataclass(frozen=True)
class Preprocess:
    """resize, crop the centre, normalise; calling it maps ``[B 3 h w]`` in [0, 1] to ``[B 3 crop crop]``."""

    size: int
    """Pixels of the shortest edge ("shortest") or of both edges ("exact") after resizing."""
    crop: int
    """Pixels of both edges of the centre crop; at most ``size``."""
    resize: Literal["shortest", "exact"]
    """"shortest" keeps the aspect ratio, "exact" squeezes to a square."""
    resample: Resample
    """The interpolation filter."""
    eight_bit: bool
    """True: resample as PIL does on 8-bit images. False: rescale to [0, 1] first, resample in floating point."""
    mean: tuple[float, float, float]
    """Subtracted from each channel."""
    std: tuple[float, float, float]
    """Divides each channel."""

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.size:
            raise ValueError(f"expected 0 < crop <= size, got crop {self.crop} and size {self.size}")

    def __call__(self, images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 crop crop"]:
        images = images.float()
        height, width = self.resized(images.shape[-2], images.shape[-1])
        if images.shape[-2:] != (height, width):
            resize = resize_like_pil if self.eight_bit else resize_like_torch
            images = resize(images, height, width, self.crop, self.resample)
        images = center_crop(images, self.crop)
        mean, std = (rearrange(images.new_tensor(v), "c -> c 1 1") for v in (self.mean, self.std))
        return (images - mean) / std

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The size before cropping."""
        if self.resize == "exact":
            return self.size, self.size
        if width <= height:
            return int(self.size * height / width), self.size
        return self.size, int(self.size * width / height)

    def batch(self, images: Tensor | Sequence[Tensor]) -> Float[Tensor, "B 3 crop crop"]:
        """Images of any sizes, ``[B 3 h w]`` or a list of ``[3 h w]``, in one batch and in the order given."""
        if isinstance(images, Tensor):
            return self(images)
        return torch.cat([self(image[None]) for image in images])


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CLIP_PREPROCESS = Preprocess(224, 224, "shortest", "bicubic", True, CLIP_MEAN, CLIP_STD)
DINOV2_PREPROCESS = Preprocess(256, 224, "shortest", "bicubic", True, IMAGENET_MEAN, IMAGENET_STD)
DINOV3_PREPROCESS = Preprocess(224, 224, "exact", "bilinear", False, IMAGENET_MEAN, IMAGENET_STD)


# --- from a checkpoint folder ---------------------------------------------------------------------------------------

PROCESSORS_8BIT = ("CLIPImageProcessor", "CLIPFeatureExtractor", "BitImageProcessor")
PROCESSORS_FLOAT = ("DINOv3ViTImageProcessor",)
PIL_FILTERS: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}


def read_preprocess(folder: Path) -> Preprocess:
    """The preprocessing that a checkpoint folder's ``preprocessor_config.json`` describes."""
    config = read_processor_config(folder)
    try:
        return parse_preprocess(config)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: unsupported image preprocessing: {error}") from error


def read_processor_config(folder: Path) -> dict[str, Any]:
    """The image processor's settings, from the file of its own or from a joint processor's file."""
    own, joint = folder / "preprocessor_config.json", folder / "processor_config.json"
    if own.exists():
        return read_json(own)
    if joint.exists():
        return read_json(joint).get("image_processor", {})
    raise FileNotFoundError(f"{folder}: expected preprocessor_config.json beside the weights, found none; "
                            "download it from the checkpoint's page")  # fmt: skip


def parse_preprocess(config: dict[str, Any]) -> Preprocess:
    """Translate a ``transformers`` image processor configuration; settings not supported raise ValueError."""
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type")))
    name = kind.removesuffix("Fast").removesuffix("Pil")
    if name not in PROCESSORS_8BIT + PROCESSORS_FLOAT:
        raise ValueError(f"expected one of {', '.join(PROCESSORS_8BIT + PROCESSORS_FLOAT)}, got {kind}")
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise ValueError(f"expected {step} true, got false")
    if not math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise ValueError(f"expected rescale_factor 1/255, got {config['rescale_factor']}")

    size = config["size"]
    shortest = isinstance(size, int) or "shortest_edge" in size
    edge = size if isinstance(size, int) else size["shortest_edge"] if shortest else square(size, "size")
    crop = config.get("crop_size") if config.get("do_center_crop", name in PROCESSORS_8BIT) else None
    if crop is None and shortest:
        raise ValueError("expected a centre crop after resizing the shortest edge, got none")
    return Preprocess(
        size=edge,
        crop=edge if crop is None else crop if isinstance(crop, int) else square(crop, "crop_size"),
        resize="shortest" if shortest else "exact",
        resample=PIL_FILTERS[config["resample"]],
        eight_bit=name in PROCESSORS_8BIT,
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
    )


def square(size: dict[str, int], field: str) -> int:
    if size["height"] != size["width"]:
        raise ValueError(f"expected a square {field}, got {size}")
    return size["height"]


# --- resizing -------------------------------------------------------------------------------------------------------


def center_crop(images: Float[Tensor, "B 3 h w"], crop: int) -> Float[Tensor, "B 3 _ _"]:
    """Cut each edge longer than ``crop`` to its middle ``crop`` pixels."""
    top, left = (max(0, (edge - crop) // 2) for edge in images.shape[-2:])
    return images[..., top : top + crop, left : left + crop]


def resize_like_torch(
    images: Float[Tensor, "B 3 h w"], height: int, width: int, crop: int, resample: Resample
) -> Float[Tensor, "B 3 height width"]:
    """Floating-point resampling with antialiasing, as torchvision's ``resize`` of float tensors."""
    return torch.nn.functional.interpolate(
        images, size=(height, width), mode=resample, antialias=True, align_corners=False
    )


def resize_like_pil(
    images: Float[Tensor, "B 3 h w"], height: int, width: int, crop: int, resample: Resample
) -> Float[Tensor, "B 3 _ _"]:
    """``PIL.Image.resize((width, height))`` of the images held in 8 bits; only the central ``crop`` is computed."""
    levels = images * 255
    levels = straight_through(levels.round(), levels).double()
    levels = resample_last_axis(levels, width, crop, resample)
    levels = resample_last_axis(levels.transpose(-1, -2), height, crop, resample).transpose(-1, -2)
    return (levels / 255).to(images.dtype)


def resample_last_axis(
    levels: Float[Tensor, "*rest n"], size: int, crop: int, resample: Resample
) -> Float[Tensor, "*rest m"]:
    """One pass: convolve, round half up, clip to 0..255; output pixels outside the central ``crop`` are left out."""
    first = max(0, (size - crop) // 2)
    bands = pil_bands(levels.shape[-1], size, first, min(crop, size), resample)
    sums = torch.cat([levels[..., lo:hi] @ weights.to(levels.device).T for lo, hi, weights in bands], dim=-1)
    smooth = sums / 2**PIL_FRACTION_BITS
    return straight_through((smooth + 0.5).floor(), smooth).clamp(0, 255)


def straight_through(rounded: Float[Tensor, "*s"], smooth: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """``rounded`` forward, the gradient of ``smooth`` backward."""
    return smooth + (rounded - smooth).detach() if smooth.requires_grad else rounded


@lru_cache(maxsize=32)
def pil_bands(in_size: int, out_size: int, first: int, count: int, resample: Resample) -> list[tuple[int, int, Tensor]]:
    """The rows ``first .. first + count`` of PIL's resampling matrix, in blocks ``(lo, hi, weights [rows, hi - lo])``.

    Weights are integers (coefficient times 2^22) held in float64, where their sums with 8-bit pixels are exact.
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


def pil_coefficients(in_size: int, out_size: int, resample: Resample) -> tuple[np.ndarray, np.ndarray]:
    """Of each output pixel its first input pixel ``[out]`` and fixed-point weights ``[out, taps]``, as in Pillow."""
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
