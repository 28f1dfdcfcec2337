"""Noise levels of flow matching. The convention of the whole package is stated here, once.

Sigma 1 is noise, sigma 0 is the image. With clean latents ``x``, noise ``ε``
and ``0 ≤ σ ≤ 1``

    x_σ = (1 − σ) x + σ ε,        velocity v = dx_σ/dσ = ε − x,

so denoising integrates ``v`` from σ = 1 down to σ = 0 (rectified flow; Liu et al., arXiv
2209.03003; Esser et al., Stable Diffusion 3, arXiv 2403.03206). A *shift* s moves levels towards
noise, ``σ → sσ / (1 + (s − 1)σ)``.

Levels to sample at are the scheduler's own, which applies the shift twice (to its range, then to
the levels in it) and so makes the last step nearly empty: results then equal diffusers' pipeline.
"""

from __future__ import annotations

import copy

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def sampling_sigmas(
    scheduler: FlowMatchEulerDiscreteScheduler, num_steps: int
) -> Float[Tensor, " steps_plus_1"]:
    """The ``num_steps + 1`` levels, from noise down to 0, that this scheduler samples at; it is
    left as it was."""
    if num_steps < 1:
        raise ValueError(f"expected at least 1 denoising step, got {num_steps}")
    if scheduler.config["use_dynamic_shifting"]:
        raise ValueError(
            "expected a scheduler with a fixed shift, as SD3's, got use_dynamic_shifting=True; "
            "set it to false in scheduler_config.json and give the shift"
        )
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps)
    return scheduler.sigmas  # type: ignore[return-value]


def training_sigmas(normals: Float[Tensor, " N"], shift: float = 1.0) -> Float[Tensor, " N"]:
    """Logit-normal levels from standard normal draws, then shifted: SD3's density of training
    levels."""
    return shift_sigmas(torch.sigmoid(normals), shift)


def shift_sigmas(sigmas: Float[Tensor, "*shape"], shift: float) -> Float[Tensor, "*shape"]:
    """``sσ / (1 + (s − 1)σ)``; shift 1 changes nothing."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def add_noise(
    latents: Float[Tensor, "N c h w"], noise: Float[Tensor, "N c h w"], sigma: Float[Tensor, " N"]
) -> Float[Tensor, "N c h w"]:
    """``x_σ = (1 − σ) x + σ ε``, each sample at its own level."""
    sigma = rearrange(sigma, "n -> n 1 1 1")
    return (1 - sigma) * latents + sigma * noise
