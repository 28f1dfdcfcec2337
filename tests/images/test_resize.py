"""Resizing against PIL's own bits, its gradient, and fitting to a size."""

import numpy as np
import PIL
import pytest
import torch
from einops import rearrange
from PIL import Image

from uae.images.resize import fit_to, resize_like_pil

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
UNCROPPED = 10**6


def random_image(seed: int, height: int, width: int) -> np.ndarray:
    """Noise on even seeds, black-and-white noise (strongest overshoot) on odd ones."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return pixels if seed % 2 == 0 else np.where(pixels < 128, 0, 255).astype(np.uint8)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return rearrange(torch.tensor(pixels), "h w c -> 1 c h w").float() / 255


def to_levels(images: torch.Tensor) -> np.ndarray:
    levels = rearrange(images, "1 c h w -> h w c") * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    return levels.round().to(torch.uint8).numpy()


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_resize_gives_the_bits_of_pil(resample):
    sizes = np.random.default_rng(0).integers(1, 160, (40, 4))
    special = [
        (48, 48, 224, 224),
        (224, 224, 48, 48),
        (1, 1, 9, 5),
        (300, 7, 7, 300),
        (640, 480, 299, 224),
    ]
    for seed, (h, w, height, width) in enumerate([*map(tuple, sizes.tolist()), *special]):
        pixels = random_image(seed, h, w)
        # one axis at a time: the order of the two passes is then ours, whatever the version of
        # Pillow
        expected = Image.fromarray(pixels).resize((width, h), FILTERS[resample])
        expected = np.asarray(expected.resize((width, height), FILTERS[resample]))
        ours = to_levels(resize_like_pil(to_tensor(pixels), height, width, UNCROPPED, resample))
        np.testing.assert_array_equal(ours, expected, err_msg=f"{h}x{w} -> {height}x{width}")


@pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) >= 13, reason="Pillow 13 may resample vertically first"
)
def test_tall_images_equal_pil_in_one_call():
    pixels = random_image(0, 900, 300)
    expected = np.asarray(Image.fromarray(pixels).resize((224, 672), FILTERS["bicubic"]))
    ours = to_levels(resize_like_pil(to_tensor(pixels), 672, 224, UNCROPPED, "bicubic"))
    np.testing.assert_array_equal(ours, expected)


def test_clipped_pixels_carry_no_gradient():
    """Next to a hard edge bicubic overshoots white: there the clip acts and the gradient is
    zero."""
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    edge.requires_grad_()
    resized = resize_like_pil(edge, 16, 16, UNCROPPED, "bicubic")
    column = int((resized[0, 0, 8] == 1).nonzero()[0])
    resized[0, 0, 8, column].backward()
    assert edge.grad is not None
    assert edge.grad.abs().sum() == 0


def test_fit_covers_and_crops_the_middle():
    image = torch.zeros(3, 20, 60)
    image[:, :, 20:40] = 1.0
    fitted = fit_to(image, (10, 10))
    assert fitted.shape == (3, 10, 10)
    assert fitted[:, :, 1:9].min() > 0.9
    assert fit_to(image, (20, 60)) is image
