"""Structural similarity by hand."""

from __future__ import annotations

import pytest
import torch

from uae.rewards.ssim import ssim
from uae.world.scene import render_batch, scene_at

SCENES = [scene_at("test", i, with_word=False, num_objects=3) for i in range(2)]
IMAGES = torch.from_numpy(render_batch(SCENES))


def test_ssim_of_known_pictures():
    noise = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    images = torch.cat(
        [IMAGES[:1], (IMAGES[:1] + 0.1 * noise[:1]).clamp(0, 1), IMAGES[1:], noise[1:]]
    )
    same, close, same_too, far = ssim(IMAGES, ["a", "b"], images).tolist()
    assert same == pytest.approx(1, abs=1e-5) == same_too and far < 0.05 and far < close < 1
    flat = torch.full((1, 3, 48, 48), 0.5)
    expected = (2 * 0.5 * 0.25 + 1e-4) / (
        0.5**2 + 0.25**2 + 1e-4
    )  # of constant pictures only the means differ
    assert ssim(flat, ["a"], flat / 2).item() == pytest.approx(expected, abs=1e-5)


def test_ssim_takes_any_size_and_has_a_gradient():
    images = torch.rand(2, 3, 48, 48, requires_grad=True)
    big = torch.nn.functional.interpolate(IMAGES[:1], (96, 96), mode="nearest")[0]
    torch.testing.assert_close(ssim([big], ["a"], images), ssim(IMAGES[:1], ["a"], images))
    ssim([big], ["a"], images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="more than 10 pixels"):
        ssim(IMAGES, ["a"], torch.rand(2, 3, 8, 8))
