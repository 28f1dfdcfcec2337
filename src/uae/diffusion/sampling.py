"""Samplers: from noise to latents along a velocity field. One function per sampler, with alike
signatures.

A velocity field is called as ``velocity(latents [N c h w], sigma [N]) -> [N c h w]``; the path is
kept in fp32, whatever the network computes in. For sigma and velocity see ``schedule.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from uae.utils.progress import track

Velocity = Callable[[Tensor, Tensor], Tensor]
ConditionalVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents, sigma, prompt_embeds


def sample_ode(
    velocity: Velocity, noise: Float[Tensor, "N c h w"], sigmas: Float[Tensor, " steps_plus_1"]
) -> Float[Tensor, "N c h w"]:
    """Euler's method on ``dx = v dσ``: ``x ← x + (σ_next − σ) v(x, σ)``. Deterministic: no
    log-probabilities."""
    latents = noise.float()
    for sigma, next_sigma in track(list(pairwise(sigmas.to(latents))), "denoising", "steps"):
        latents = (
            latents + (next_sigma - sigma) * velocity(latents, sigma.expand(len(latents))).float()
        )
    return latents


def guided(
    velocity: ConditionalVelocity,
    prompt_embeds: Float[Tensor, "N T E"],
    negative_embeds: Float[Tensor, "1 Tn E"] | None,
    guidance_scale: float,
    *,
    detach_unconditional: bool = False,
) -> Velocity:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): ``u + s (c − u)``; scale 1 is
    ``c`` in one pass.

    Both branches go through the network as one batch where their texts have one length. Otherwise
    in two: padding would change the picture, as SD3 has no text mask. ``detach_unconditional``:
    gradients flow through c alone (as Flow-GRPO scores).
    """
    if guidance_scale == 1:
        return lambda latents, sigma: velocity(latents, sigma, prompt_embeds)
    if negative_embeds is None:
        raise ValueError(
            f"guidance_scale {guidance_scale} needs negative_embeds; give them, or scale 1 (no "
            "guidance)"
        )
    negative_embeds = repeat(negative_embeds, "1 t e -> n t e", n=len(prompt_embeds))

    def combined(latents: Tensor, sigma: Tensor) -> Tensor:
        unconditional, conditional = _both(velocity, latents, sigma, negative_embeds, prompt_embeds)
        if detach_unconditional:
            unconditional = unconditional.detach()
        return unconditional + guidance_scale * (conditional - unconditional)

    return combined


def _both(
    velocity: ConditionalVelocity, latents: Tensor, sigma: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    """The velocity under two conditions, in one batch if their shapes allow."""
    if first.shape != second.shape:
        return velocity(latents, sigma, first), velocity(latents, sigma, second)
    both = velocity(
        torch.cat([latents, latents]), torch.cat([sigma, sigma]), torch.cat([first, second])
    )
    first_half, second_half = both.chunk(2)
    return first_half, second_half
