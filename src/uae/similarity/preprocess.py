"""Pixels as a similarity backbone expects them: one differentiable preprocessing for reward and
metric.

``y = (crop(resize(x)) - mean) / std``, with each published checkpoint's own arithmetic. CLIP,
LongCLIP and DINOv2 resample images of 8 bits as PIL does. DINOv3 rescales to [0, 1] first and
resamples in floating point. ``uae.images.resize`` has both. Images already of the right size are
only normalised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from uae.images.resize import Resample, center_crop, resize_like_pil, resize_like_torch
from uae.utils.weights import read_json


@dataclass(frozen=True)
class Preprocess:
    """resize, crop the centre, normalise; calling it maps ``[B 3 h w]`` in [0, 1] to ``[B 3 crop
    crop]``."""

    size: int
    """Pixels of the shortest edge ("shortest") or of both edges ("exact") after resizing."""
    crop: int
    """Pixels of both edges of the centre crop; at most ``size``."""
    resize: Literal["shortest", "exact"]
    """"shortest" keeps the aspect ratio, "exact" squeezes to a square."""
    resample: Resample
    """The interpolation filter."""
    eight_bit: bool
    """True: resample as PIL does on 8-bit images. False: rescale to [0, 1] first, resample in
    floating point."""
    mean: tuple[float, float, float]
    """Subtracted from each channel."""
    std: tuple[float, float, float]
    """Divides each channel."""

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.size:
            raise ValueError(
                f"expected 0 < crop <= size, got crop {self.crop} and size {self.size}"
            )

    def __call__(self, images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 crop crop"]:
        images = images.float()
        height, width = self.resized(images.shape[-2], images.shape[-1])
        if images.shape[-2:] != (height, width):
            if self.eight_bit:
                images = resize_like_pil(images, height, width, self.crop, self.resample)
            else:
                images = resize_like_torch(images, height, width, self.resample)
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
        """Images of any sizes, ``[B 3 h w]`` or a list of ``[3 h w]``, in one batch and in the
        order given."""
        if isinstance(images, Tensor):
            return self(images)
        return torch.cat([self(image[None]) for image in images])


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CLIP_PREPROCESS = Preprocess(224, 224, "shortest", "bicubic", True, CLIP_MEAN, CLIP_STD)
DINOV2_PREPROCESS = Preprocess(256, 224, "shortest", "bicubic", True, IMAGENET_MEAN, IMAGENET_STD)
DINOV3_PREPROCESS = Preprocess(224, 224, "exact", "bilinear", False, IMAGENET_MEAN, IMAGENET_STD)


# --- from a checkpoint folder --------------------------------------------------------------------

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
    raise FileNotFoundError(
        f"{folder}: expected preprocessor_config.json beside the weights, found none; "
        "download it from the checkpoint's page"
    )


def parse_preprocess(config: dict[str, Any]) -> Preprocess:
    """Translate a ``transformers`` image processor configuration; settings not supported raise
    ValueError."""
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type")))
    name = kind.removesuffix("Fast").removesuffix("Pil")
    if name not in PROCESSORS_8BIT + PROCESSORS_FLOAT:
        raise ValueError(
            f"expected one of {', '.join(PROCESSORS_8BIT + PROCESSORS_FLOAT)}, got {kind}"
        )
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise ValueError(f"expected {step} true, got false")
    if not math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise ValueError(f"expected rescale_factor 1/255, got {config['rescale_factor']}")

    size = config["size"]
    if isinstance(size, int):
        size = {"shortest_edge": size}
    keeps_aspect = "shortest_edge" in size
    edge = size["shortest_edge"] if keeps_aspect else square(size, "size")
    has_crop = config.get("do_center_crop", name in PROCESSORS_8BIT)
    crop = config.get("crop_size") if has_crop else None
    if crop is None and keeps_aspect:
        raise ValueError("expected a centre crop after resizing the shortest edge, got none")
    return Preprocess(
        size=edge,
        crop=edge if crop is None else square(crop, "crop_size"),
        resize="shortest" if keeps_aspect else "exact",
        resample=PIL_FILTERS[config["resample"]],
        eight_bit=name in PROCESSORS_8BIT,
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
    )


def square(size: Any, field: str) -> int:
    """Either edge of a square, given as a number or as both edges."""
    if isinstance(size, int):
        return size
    if size["height"] != size["width"]:
        raise ValueError(f"expected a square {field}, got {size}")
    return size["height"]
