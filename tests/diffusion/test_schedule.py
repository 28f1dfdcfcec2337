"""Noise levels: the scheduler's own to sample at, logit-normal ones to train at."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from uae.diffusion.schedule import add_noise, sampling_sigmas, shift_sigmas, training_sigmas


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sampling_sigmas_are_the_schedulers_and_leave_it_alone(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    before = scheduler.sigmas.clone()
    sigmas = sampling_sigmas(scheduler, 10)
    assert torch.equal(scheduler.sigmas, before)
    scheduler.set_timesteps(10)
    assert torch.equal(sigmas, scheduler.sigmas)
    assert len(sigmas) == 11 and sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


def test_sampling_sigmas_without_shift_are_even_but_for_the_last_step():
    expected = torch.linspace(1, 0.001, 4)
    torch.testing.assert_close(sampling_sigmas(FlowMatchEulerDiscreteScheduler(), 4)[:-1], expected)


def test_no_steps_and_dynamic_shifting_are_refused():
    with pytest.raises(ValueError, match="at least 1 denoising step, got 0"):
        sampling_sigmas(FlowMatchEulerDiscreteScheduler(), 0)
    with pytest.raises(ValueError, match="fixed shift"):
        sampling_sigmas(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 4)


def test_training_sigmas_are_logit_normal_then_shifted():
    normals = torch.tensor([0.0, 1.0, -2.0])
    plain = torch.tensor([1 / (1 + math.exp(-z)) for z in (0.0, 1.0, -2.0)])
    torch.testing.assert_close(training_sigmas(normals), plain)
    torch.testing.assert_close(training_sigmas(normals, shift=3.0), 3 * plain / (1 + 2 * plain))
    assert shift_sigmas(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist() == [0.0, 0.75, 1.0]


def test_sigma_one_is_noise_and_zero_the_image():
    image, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    noisy = add_noise(image, noise, torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(noisy[0], image[0]) and torch.equal(noisy[1], noise[1])
    torch.testing.assert_close(noisy[2], 0.75 * image[2] + 0.25 * noise[2])
