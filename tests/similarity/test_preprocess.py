"""Preprocessing against PIL and crop, against the documented arithmetic of each processor, and
its gradient."""

import json

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from uae.similarity.preprocess import (
    CLIP_PREPROCESS,
    DINOV2_PREPROCESS,
    DINOV3_PREPROCESS,
    Preprocess,
    read_preprocess,
)

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def random_image(seed: int, height: int, width: int) -> np.ndarray:
    """Noise on even seeds, black-and-white noise (strongest overshoot) on odd ones."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return pixels if seed % 2 == 0 else np.where(pixels < 128, 0, 255).astype(np.uint8)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return rearrange(torch.tensor(pixels), "h w c -> 1 c h w").float() / 255


@pytest.mark.parametrize(
    ("preprocess", "size", "expected"),
    [
        (CLIP_PREPROCESS, (500, 375), (298, 224)),  # 298.67: cut, not rounded
        (CLIP_PREPROCESS, (375, 500), (224, 298)),
        (DINOV2_PREPROCESS, (777, 500), (397, 256)),  # 397.82
        (DINOV2_PREPROCESS, (256, 301), (256, 301)),
        (DINOV3_PREPROCESS, (500, 375), (224, 224)),
    ],
)
def test_size_before_cropping(preprocess, size, expected):
    assert preprocess.resized(*size) == expected


@pytest.mark.parametrize("preprocess", [CLIP_PREPROCESS, DINOV2_PREPROCESS])
@pytest.mark.parametrize(
    "size", [(375, 500), (500, 375), (100, 130), (224, 224), (256, 256), (1024, 768), (256, 301)]
)
def test_whole_preprocessing_equals_pil_and_crop(preprocess, size):
    pixels = random_image(2, *size)
    height, width = preprocess.resized(*size)
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), FILTERS["bicubic"]))
    top, left = (height - 224) // 2, (width - 224) // 2
    cropped = resized[top : top + 224, left : left + 224].astype(np.float64) / 255
    expected = (cropped - preprocess.mean) / preprocess.std
    ours = rearrange(preprocess(to_tensor(pixels)), "1 c h w -> h w c")
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_dinov3_rescales_before_a_float_resize():
    images = to_tensor(random_image(0, 200, 300))
    resized = torch.nn.functional.interpolate(
        images, (224, 224), mode="bilinear", antialias=True, align_corners=False
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (resized - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(DINOV3_PREPROCESS(images), expected)


def test_right_size_is_only_normalised():
    tiny = Preprocess(48, 48, "shortest", "bicubic", True, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    images = torch.rand(2, 3, 48, 48)
    expected = (images - 0.5) / torch.tensor([0.25, 0.5, 1.0])[:, None, None]
    torch.testing.assert_close(tiny(images), expected, rtol=0, atol=0)


def test_mixed_sizes_keep_their_order():
    images = [torch.rand(3, h, w) for h, w in [(60, 80), (48, 48), (60, 80), (50, 48), (48, 48)]]
    tiny = Preprocess(48, 48, "shortest", "bicubic", True, (0.5,) * 3, (0.5,) * 3)
    expected = torch.cat([tiny(image[None]) for image in images])
    torch.testing.assert_close(tiny.batch(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("preprocess", [CLIP_PREPROCESS, DINOV2_PREPROCESS, DINOV3_PREPROCESS])
@pytest.mark.parametrize("size", [(300, 260), (60, 100)])
def test_gradient_is_that_of_the_unrounded_resize(preprocess, size):
    """Mid-grey images never clip, so the gradient is linear resampling's: finite differences in
    float64 give it."""
    torch.manual_seed(0)
    images = (0.3 + 0.4 * torch.rand(1, 3, *size)).requires_grad_()
    weights = torch.randn(1, 3, preprocess.crop, preprocess.crop)
    (preprocess(images) * weights).sum().backward()
    gradient = images.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0

    def smooth(x: torch.Tensor) -> torch.Tensor:
        """Resampling as torch does it: bicubic a=-0.5 under antialias, no rounding."""
        size = preprocess.resized(*x.shape[-2:])
        x = torch.nn.functional.interpolate(
            x, size, mode=preprocess.resample, antialias=True, align_corners=False
        )
        top, left = (size[0] - preprocess.crop) // 2, (size[1] - preprocess.crop) // 2
        x = x[..., top : top + preprocess.crop, left : left + preprocess.crop]
        std = torch.tensor(preprocess.std, dtype=x.dtype)[:, None, None]
        return (x / std * weights.to(x.dtype)).sum()

    direction = torch.randn_like(images, dtype=torch.float64)
    step = 1e-4
    high, low = (smooth(images.detach().double() + sign * step * direction) for sign in (1, -1))
    slope = ((high - low) / (2 * step)).item()
    assert (gradient.double() * direction).sum().item() == pytest.approx(slope, rel=1e-3)


CLIP_FILE = {  # as published: bare integers and the old name of the class
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "resample": 3,
    "size": 224,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


DINOV2_FILE = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "BitImageProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


DINOV3_FILE = {
    "crop_size": None,
    "do_center_crop": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CLIP_FILE, CLIP_PREPROCESS),
        (DINOV2_FILE, DINOV2_PREPROCESS),
        (DINOV3_FILE, DINOV3_PREPROCESS),
    ],
)
def test_reads_the_published_files(tmp_path, config, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert read_preprocess(tmp_path) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor"),
        ({"size": {"height": 224, "width": 448}, "do_center_crop": False}, "square"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"crop_size": {"height": 512, "width": 512}}, "crop"),
        ({"do_center_crop": False}, "centre crop"),
    ],
)
def test_unsupported_settings_are_named(tmp_path, change, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(DINOV2_FILE | change))
    with pytest.raises(ValueError, match=message):
        read_preprocess(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        read_preprocess(tmp_path)
