"""Reward of pixels: structural similarity (Wang et al., IEEE TIP 2004)."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from uae.rewards.base import Images

SIGMA, RADIUS = 1.5, 5  # pixels, of SSIM's Gaussian window of 11
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]


def ssim(
    sources: Images, captions: list[str], reconstructions: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, " B"]:
    """Mean over channels and windows within the image; differentiable.

    Sources are brought to the reconstructions' size.
    """
    size, device = reconstructions.shape[-2:], reconstructions.device
    if min(size) <= 2 * RADIUS:
        raise ValueError(
            f"ssim: expected images of more than {2 * RADIUS} pixels a side, got {tuple(size)}"
        )
    fitted = [nn.functional.interpolate(s[None].to(device), size, mode="area")[0] for s in sources]
    x = repeat(
        torch.stack(fitted), "p c h w -> (p n) c h w", n=len(reconstructions) // len(fitted)
    ).float()
    y = reconstructions.float()
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    cov = _blur(x * y) - mean_x * mean_y
    similarity = (
        (2 * mean_x * mean_y + C1)
        * (2 * cov + C2)
        / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))
    )
    return similarity.mean((1, 2, 3))


def _blur(images: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c h_in w_in"]:
    """Weighted by a Gaussian, where the window lies within the image."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, device=images.device)
    kernel = (-(offsets.float() ** 2) / (2 * SIGMA**2)).exp()
    kernel = kernel / kernel.sum()
    flat = rearrange(images, "b c h w -> (b c) 1 h w")
    flat = nn.functional.conv2d(
        nn.functional.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1)
    )
    return rearrange(flat, "(b c) 1 h w -> b c h w", c=images.shape[1])
