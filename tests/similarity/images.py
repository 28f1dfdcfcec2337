"""Photographs, and what two embeddings of them have in common."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SIZES = [(240, 320), (320, 240), (224, 224), (256, 256), (130, 90), (500, 777)]


def photographs() -> list[np.ndarray]:
    """Smooth shapes with noise and hard edges, in several sizes and aspect ratios."""
    rng = np.random.default_rng(0)
    images = []
    for height, width in SIZES:
        y, x = np.mgrid[0:height, 0:width] / 40
        waves = np.stack([np.sin(x + k) * np.cos(y * (k + 1)) for k in range(3)], axis=-1)
        pixels = 127 + 100 * waves + rng.normal(0, 20, (height, width, 3))
        pixels[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
        images.append(pixels.clip(0, 255).astype(np.uint8))
    return images


def to_tensor(pixels: np.ndarray) -> Tensor:
    return rearrange(torch.tensor(pixels), "h w c -> c h w").float() / 255


def assert_same_direction(ours: Tensor, features: Tensor) -> None:
    """Cosine within 1e-5 of 1, for unit vectors that differ from image to image (so that the test
    can fail)."""
    torch.testing.assert_close(ours.norm(dim=-1), torch.ones(len(ours)))
    cosines = nn.functional.cosine_similarity(ours.double(), features.double(), dim=-1)
    assert (1 - cosines).abs().max() <= 1e-5
    others = nn.functional.cosine_similarity(ours.double(), features.double().roll(1, 0), dim=-1)
    assert (1 - others).min() > 1e-4
