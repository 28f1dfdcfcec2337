"""The flow-matching loss against numbers worked out by hand."""

import pytest
import torch

from uae.diffusion.loss import flow_matching_loss


def test_by_hand():
    latents, noise = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 2.0]]], [[[0.0, -1.0]]]])
    velocity = torch.tensor(
        [[[[1.0, 0.0]]], [[[3.0, -1.0]]]]
    )  # errors (0, -2) and (3, 0): mean squares 2 and 4.5
    assert flow_matching_loss(velocity, latents, noise).item() == pytest.approx((2 + 4.5) / 2)


def test_zero_at_the_true_velocity_and_its_gradient():
    latents, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    velocity = (noise - latents).requires_grad_()
    assert flow_matching_loss(velocity, latents, noise).item() == 0
    shifted = (noise - latents + 1).detach().requires_grad_()
    flow_matching_loss(shifted, latents, noise).backward()
    torch.testing.assert_close(shifted.grad, torch.full_like(shifted, 2 / shifted.numel()))
