"""DiffusionNFT and AWM against numbers worked out by hand, and what is known of their gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from uae.diffusion.forward import (
    AWM,
    NFT,
    Noised,
    awm_log_prob,
    awm_loss,
    awm_steps,
    nft_loss,
    nft_steps,
    norm_ratio,
)


def random(num: int = 4) -> Noised:
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(num, 2, 3, 3, generator=generator, dtype=torch.float64)

    sigma = torch.rand(num, generator=generator, dtype=torch.float64)
    return Noised(draw(), draw(), sigma, draw().requires_grad_(), draw(), draw())


def by_hand() -> Noised:
    """Of two numbers: the target is (1, 2)."""

    def pair(a: float, b: float) -> Tensor:
        return torch.tensor([[[[a, b]]]], dtype=torch.float32)

    velocity = pair(2, 2).requires_grad_()
    return Noised(pair(0, 0), pair(1, 2), torch.tensor([0.5]), velocity, pair(1, 0), pair(0, 0))


def log_prob(noised: Noised, awm: AWM) -> torch.Tensor:
    return awm_log_prob(noised.velocity, noised.noise - noised.latents, noised.sigma, awm)


def gradient(loss: Tensor, noised: Noised) -> Tensor:
    return torch.autograd.grad(loss.sum(), noised.velocity)[0]


def matching(noised: Noised) -> Tensor:
    return (noised.velocity - (noised.noise - noised.latents)).square().flatten(1).mean(1)


def per_sample(values: Tensor) -> Tensor:
    return values[:, None, None, None]


@pytest.mark.parametrize("beta", [0.1, 1.0, 1.7])
def test_nft_is_matching_about_the_old_velocity_and_a_pull_to_it(beta: float):
    """‖e‖² + 2β(2r − 1) e·d + β²‖d‖², with weights that are one constant."""
    noised, advantages = random(), torch.tensor([-6.0, -1.0, 0.0, 4.0], dtype=torch.float64)
    nft = NFT(beta=beta, smallest_weight=1e6, reference_coef=0.0)
    loss, _ = nft_loss(noised, advantages, nft)
    r = 0.5 + 0.5 * advantages.clamp(-5, 5) / 5
    e = (noised.old - (noised.noise - noised.latents)).flatten(1)
    d = (noised.velocity - noised.old).flatten(1)
    identity = e.square().mean(1) + 2 * beta * (2 * r - 1) * (e * d).mean(1)
    identity = identity + beta**2 * d.square().mean(1)
    torch.testing.assert_close(loss * beta / 5 * 1e6 / noised.sigma**2, identity)


def test_nft_by_hand():
    """r = ¾. v⁺ = (2, 2) is off by (−½, 0): ⅛ / ¼.

    v⁻ = (0, −2) is off by (½, 2): 2⅛ / 1¼."""
    noised = by_hand()
    loss, parts = nft_loss(noised, torch.tensor([2.5]), NFT(reference_coef=0.01))
    assert parts["positive_loss"].item() == pytest.approx(0.5)
    assert parts["negative_loss"].item() == pytest.approx(1.7)
    assert parts["policy_loss"].item() == pytest.approx(4.0)
    assert parts["pull"].item() == pytest.approx(2.5)
    assert loss.item() == pytest.approx(4.04)
    grad = gradient(loss, noised).flatten()
    torch.testing.assert_close(grad, torch.tensor([4.02, 1.02]))


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_at_the_old_velocity_nft_is_matching_times_the_advantage(beta: float):
    """C (2r − 1), the clipped advantage, times t²/w times the gradient of matching."""
    noised = random()
    noised = noised._replace(old=noised.velocity.detach())
    advantages = torch.tensor([-7.0, -1.0, 0.0, 3.0], dtype=torch.float64)
    loss, _ = nft_loss(noised, advantages, NFT(beta=beta, reference_coef=0.0))
    error = noised.sigma[:, None] * (noised.old - noised.noise + noised.latents).flatten(1)
    factor = advantages.clamp(-5, 5) * noised.sigma**2 / error.abs().mean(1)
    expected = per_sample(factor) * gradient(matching(noised), noised)
    torch.testing.assert_close(gradient(loss, noised), expected)


def test_a_perfect_velocity_is_no_division_by_zero():
    noised = by_hand()
    target = (noised.noise - noised.latents).requires_grad_()
    noised = noised._replace(velocity=target, old=target.detach())
    loss, _ = nft_loss(noised, torch.tensor([1.0]), NFT(reference_coef=0.0))
    assert loss.item() == 0 and not gradient(loss, noised).any()


def test_the_reference_is_pulled_to_by_its_coefficient():
    noised = random()
    plain, _ = nft_loss(noised, torch.zeros(4), NFT(reference_coef=0.0))
    held, _ = nft_loss(noised, torch.zeros(4), NFT(reference_coef=0.5))
    distance = (noised.velocity - noised.reference).square().flatten(1).mean(1)
    torch.testing.assert_close(held - plain, 0.5 * distance)


def test_awm_by_hand():
    """The error (1, 0) has mean square ½: at power 1, t = ½, log p = −¼."""
    noised, linear = by_hand(), AWM(power=1.0, pull_coef=0.1, reference_coef=0.01)
    assert log_prob(noised, linear).item() == pytest.approx(-0.25)
    before = torch.tensor([-0.25]) - torch.tensor(1.5).log()  # the ratio is 1.5
    loss, parts = awm_loss(noised, before, torch.tensor([2.5]), linear)
    assert parts["ratio_mean"].item() == pytest.approx(1.5)
    assert parts["policy_loss"].item() == pytest.approx(-0.75)
    assert loss.item() == pytest.approx(-0.75 + 0.1 * 2.5 + 0.01 * 4)
    # −a ρ ∇log p = ½ · 1.5 · ½ (1, 0);
    # of the pull 0.1 (1, 2), of the reference 0.01 (2, 2)
    grad = gradient(loss, noised).flatten()
    torch.testing.assert_close(grad, torch.tensor([0.375 + 0.1 + 0.02, 0.2 + 0.02]))


def test_awms_likelihood_is_concave_in_the_error():
    """m = 16 at power ¼: (2 − δ^¼) / ¼."""
    noised = by_hand()
    target = noised.noise - noised.latents
    noised = noised._replace(velocity=target + 4)
    assert log_prob(noised, AWM()).item() == pytest.approx(-0.5 * (2 - 1e-10**0.25) / 0.25)


def test_awms_gradient_at_ratio_1():
    noised, awm = random(), AWM(pull_coef=0.0, reference_coef=0.0)
    advantages = torch.tensor([-7.0, -1.0, 0.0, 3.0], dtype=torch.float64)
    before = log_prob(noised, awm).detach()
    loss, parts = awm_loss(noised, before, advantages, awm)
    assert (parts["ratio_mean"] == 1).all()
    error = matching(noised)
    factor = advantages.clamp(-5, 5) / 5 * noised.sigma * (error.detach() + 1e-10) ** -0.75
    expected = per_sample(factor) * gradient(error, noised)
    torch.testing.assert_close(gradient(loss, noised), expected)


@pytest.mark.parametrize(("advantage", "has_gradient"), [(1.0, False), (-1.0, True)])
def test_awms_ratio_is_clipped_where_it_has_gone_far_enough(advantage: float, has_gradient: bool):
    noised, awm = by_hand(), AWM(pull_coef=0.0, reference_coef=0.0)
    before = log_prob(noised, awm).detach() - torch.tensor(3.0).log()
    loss, _ = awm_loss(noised, before, torch.tensor([advantage]), awm)
    assert loss.item() == pytest.approx(0.6 if has_gradient else -0.4)
    assert gradient(loss, noised).any().item() == has_gradient


def test_norm_ratio():
    noised = by_hand()._replace(reference=torch.tensor([[[[1.0, 1.0]]]]))
    ratio = norm_ratio(noised.velocity, noised.reference)
    assert ratio.item() == pytest.approx(2.0) and not ratio.requires_grad


def test_nft_takes_all_times_but_one_in_an_order_of_its_own():
    steps = nft_steps(torch.rand(50, 10), None)
    assert steps.shape == (50, 9)
    assert all(len(set(row)) == 9 for row in steps.tolist())
    assert {step for row in steps.tolist() for step in row} == set(range(10))
    assert len({tuple(row) for row in steps.tolist()}) > 40
    assert nft_steps(torch.rand(2, 1), None).tolist() == [[0], [0]]
    assert nft_steps(torch.tensor([[0.3, 0.1, 0.2]]), 2).tolist() == [[1, 2]]


def test_awm_takes_one_time_of_each_stratum_and_never_pure_noise():
    """14 steps, as published: strata from 1, 2, 4, 6, 8 and 10 up to 12."""
    lowest, highest = torch.zeros(1, 6), torch.full((1, 6), 0.999)
    assert awm_steps(lowest, 14, 0.9).tolist() == [[1, 2, 4, 6, 8, 10]]
    assert awm_steps(highest, 14, 0.9).tolist() == [[1, 3, 5, 7, 9, 11]]
    assert awm_steps(highest, 2, 0.9).tolist() == [[1] * 6]
    assert awm_steps(highest, 1, 0.9).tolist() == [[0] * 6]


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (NFT(), {"beta": 0.0}, "beta: expected above 0"),
        (NFT(), {"num_times": 0}, "num-times: expected at least 1"),
        (AWM(), {"time_fraction": 1.5}, "time-fraction: expected above 0 and at most 1"),
        (AWM(), {"pull_coef": -1.0}, "pull-coef: expected at least 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: NFT | AWM, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(settings, **change)
