"""Stochastic samplers against what is known: the ODE, a Gaussian's marginals, densities by
torch.distributions."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)

from uae.diffusion.sampling import sample_ode
from uae.diffusion.schedule import sampling_sigmas
from uae.diffusion.stochastic import (
    Gaussian,
    Stochastic,
    gaussian_kl,
    log_prob,
    sample_stochastic,
    step_distribution,
)


def exact_velocity(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[ε − x | x_σ] for data N(0, 1): the best any network could learn."""
    s = sigma[:, None, None, None]
    return latents * (2 * s - 1) / (s**2 + (1 - s) ** 2)


def sigmas(num_steps: int) -> torch.Tensor:
    return sampling_sigmas(FlowMatchEulerDiscreteScheduler(shift=3.0), num_steps)


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_without_noise_it_is_the_ode(kind):
    noise = torch.randn(3, 4, 6, 6)
    path = sample_stochastic(
        exact_velocity,
        noise,
        sigmas(10),
        Stochastic(kind, noise_level=0.0),
        torch.randn(3, 10, 4, 6, 6),
    )
    torch.testing.assert_close(path.latents[:, -1], sample_ode(exact_velocity, noise, sigmas(10)))
    assert not path.is_random.any() and path.log_probs.abs().max() == 0
    stepped = noise  # and the step itself tends to Euler's
    for sigma, following in pairwise(sigmas(10).tolist()):
        v = exact_velocity(stepped, torch.full((3,), sigma))
        stepped = step_distribution(
            stepped, v, sigma, following, Stochastic(kind, noise_level=1e-6)
        ).mean
    torch.testing.assert_close(stepped, path.latents[:, -1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "num_steps", "variance"),
    [
        *(("sde", 10, 0.784), ("sde", 40, 0.953), ("sde", 1000, 1.001)),
        *(("cps", 10, 0.500), ("cps", 40, 0.649), ("cps", 1000, 0.719)),
    ],
)
def test_final_variance_of_gaussian_data(kind, num_steps, variance):
    """Exactly, step by step: the mean of each step is a multiple of where it starts, as the
    velocity is. With many steps the SDE comes to the right marginal, and CPS does not."""
    found, one, levels = 1.0, torch.ones(1, 1, 1, 1), sigmas(num_steps)
    for sigma, following in pairwise(levels):
        how = Stochastic(kind, noise_level=0.7)
        step = step_distribution(
            one, exact_velocity(one, sigma[None]), sigma.item(), following.item(), how
        )
        found = step.mean.item() ** 2 * found + step.std**2
    assert found == pytest.approx(variance, abs=1e-3)


def test_samples_have_that_variance():
    noise, draws = torch.randn(4000, 1, 2, 2), torch.randn(4000, 10, 1, 2, 2)
    final = sample_stochastic(exact_velocity, noise, sigmas(10), Stochastic("sde"), draws).latents[
        :, -1
    ]
    assert final.var().item() == pytest.approx(0.784, abs=0.03) and abs(final.mean().item()) < 0.03


def test_log_probs_are_a_gaussians():
    step = Gaussian(torch.randn(5, 4, 3, 3), 0.3, 0.4)
    at = step.mean + 0.3 * torch.randn(5, 4, 3, 3)
    wanted = torch.distributions.Normal(step.mean, 0.3).log_prob(at).flatten(1).mean(1)
    torch.testing.assert_close(log_prob(at, step, "sde"), wanted)
    torch.testing.assert_close(
        log_prob(at, step, "cps"), -(at - step.mean).square().flatten(1).mean(1)
    )


def test_both_forms_of_the_kl():
    delta, scale = -0.1, 0.8
    step = Gaussian(torch.randn(5, 4, 3, 3), scale * math.sqrt(-delta), scale)
    other = step.mean + 0.2 * torch.randn(5, 4, 3, 3)
    normal = torch.distributions.Normal
    wanted = (
        torch.distributions.kl_divergence(normal(step.mean, step.std), normal(other, step.std))
        .flatten(1)
        .mean(1)
    )
    torch.testing.assert_close(gaussian_kl(step, other, "exact"), wanted)
    torch.testing.assert_close(gaussian_kl(step, other, "published"), wanted * -delta)


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_scored_again_the_ratio_is_one(kind):
    how, levels = Stochastic(kind, first=2, num_steps=3), sigmas(10)
    path = sample_stochastic(
        exact_velocity, torch.randn(3, 4, 6, 6), levels, how, torch.randn(3, 10, 4, 6, 6)
    )
    assert path.is_random.tolist() == [False] * 2 + [True] * 3 + [False] * 5
    for t in path.is_random.nonzero().flatten().tolist():
        before, after = path.latents[:, t], path.latents[:, t + 1]
        v = exact_velocity(before, levels[t].expand(3))
        step = step_distribution(before, v, levels[t].item(), levels[t + 1].item(), how)
        torch.testing.assert_close(
            log_prob(after, step, kind), path.log_probs[:, t], atol=1e-6, rtol=0
        )


def test_near_one_the_sde_does_not_explode():
    latents = torch.randn(2, 4, 3, 3)
    at_one, near = (step_distribution(latents, latents, s, 0.9, Stochastic()) for s in (1.0, 0.999))
    assert at_one.std == pytest.approx(near.std, rel=0.02) and near.std < 1


def test_the_last_cps_step_has_no_density():
    assert Stochastic("cps").is_random(sigmas(4)).tolist() == [True, True, True, False]
    assert Stochastic("sde").is_random(sigmas(4)).tolist() == [True] * 4


@pytest.mark.parametrize(
    "wrong",
    [{"noise_level": -1.0}, {"num_steps": 0}, {"first": -1}, {"kind": "cps", "noise_level": 2.0}],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="noise_level"):
        Stochastic(**wrong)
