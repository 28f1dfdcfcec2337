"""The ODE sampler where the answer is known, and guidance."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from uae.diffusion.sampling import guided, sample_ode
from uae.diffusion.schedule import sampling_sigmas
from uae.diffusion.texts import TextEmbeds


def gaussian_velocity(variance):
    """E[ε − x | x_σ] for data N(0, variance)."""

    def velocity(latents, sigma):
        s = sigma[0]
        return latents * (s - (1 - s) * variance) / (s**2 + (1 - s) ** 2 * variance)

    return velocity


@pytest.mark.parametrize(("num_steps", "expected"), [(10, 0.669), (40, 0.912), (1000, 0.996)])
def test_final_variance_of_gaussian_data(num_steps, expected):
    """SD3's levels (shift 3), unit variance: Euler's bias is known exactly, and vanishes with many
    steps."""
    noise = torch.randn(64, 4, 8, 8)
    sigmas = sampling_sigmas(FlowMatchEulerDiscreteScheduler(shift=3.0), num_steps)
    latents = sample_ode(gaussian_velocity(1.0), noise, sigmas)
    assert (latents.var() / noise.var()).item() == pytest.approx(expected, abs=1e-3)


def test_constant_velocity_is_integrated_exactly():
    """From the noise of an image, along ε − x, one gets the image."""
    image, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    sigmas = sampling_sigmas(FlowMatchEulerDiscreteScheduler(shift=3.0), 7)
    torch.testing.assert_close(
        sample_ode(lambda x, sigma: noise - image, noise, sigmas), image, atol=1e-6, rtol=0
    )


def test_the_path_is_kept_in_fp32():
    seen = []

    def velocity(latents, sigma):
        seen.append((latents.dtype, sigma.dtype, tuple(sigma.shape)))
        return torch.full_like(latents, 1e-3, dtype=torch.bfloat16)

    latents = sample_ode(
        velocity, torch.ones(2, 1, 2, 2, dtype=torch.bfloat16), torch.linspace(1, 0, 101)
    )
    assert set(seen) == {(torch.float32, torch.float32, (2,))}
    torch.testing.assert_close(
        latents, torch.full((2, 1, 2, 2), 1 - 1e-3), atol=1e-5, rtol=0
    )  # bf16 would stay at 1


class CountingVelocity:
    """Velocity = mean of the text embedding; counts batch sizes."""

    def __init__(self):
        self.batches = []

    def __call__(self, latents, sigma, texts):
        self.batches.append(len(latents))
        return texts.embeds.mean((1, 2))[:, None, None, None].expand_as(latents)


def texts(embeds):
    return TextEmbeds(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool))


@pytest.mark.parametrize(("negative_length", "batches"), [(5, [6]), (2, [3, 3])])
def test_guidance_extrapolates_from_the_negative(negative_length, batches):
    velocity, latents = CountingVelocity(), torch.zeros(3, 1, 2, 2)
    embeds = texts(torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand(3, 5, 4))
    negative = texts(torch.full((1, negative_length, 4), 0.5))
    result = guided(velocity, embeds, negative, 5.0)(latents, torch.ones(3))
    assert result[:, 0, 0, 0].tolist() == [0.5 + 5 * 0.5, 0.5 + 5 * 1.5, 0.5 + 5 * 2.5]
    assert velocity.batches == batches


def test_scale_one_is_one_pass_without_the_negative():
    velocity, embeds = CountingVelocity(), texts(torch.randn(3, 5, 4))
    latents, sigma = torch.zeros(3, 1, 2, 2), torch.ones(3)
    result = guided(velocity, embeds, texts(torch.randn(1, 5, 4)), 1.0)(latents, sigma)
    assert torch.equal(result, velocity(latents, sigma, embeds)) and velocity.batches == [3, 3]


def test_guidance_without_a_negative_is_refused():
    with pytest.raises(ValueError, match=r"guidance_scale 4\.5 needs negative_embeds"):
        guided(CountingVelocity(), texts(torch.randn(3, 5, 4)), None, 4.5)
