"""Samplers: from noise to latents along a velocity field. One function per sampler, with alike
signatures.

A velocity field is called as ``velocity(latents [N c h w], sigma [N]) -> [N c h w]``; the path is
kept in fp32, whatever the network computes in. For sigma and velocity see ``schedule.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from uae.diffusion.texts import TextEmbeds
from uae.utils.progress import track

Velocity = Callable[[Tensor, Tensor], Tensor]
ConditionalVelocity = Callable[[Tensor, Tensor, TextEmbeds], Tensor]  # latents, sigma, texts
Guidance = Callable[[Tensor, Tensor, float], Tensor]  # unconditional, conditional, guidance scale


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


def extrapolate(
    unconditional: Float[Tensor, "N c h w"],
    conditional: Float[Tensor, "N c h w"],
    guidance_scale: float,
) -> Float[Tensor, "N c h w"]:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): ``u + s (c − u)``."""
    return unconditional + guidance_scale * (conditional - unconditional)


def guided(
    velocity: ConditionalVelocity,
    texts: TextEmbeds,
    negative: TextEmbeds | None,
    guidance_scale: float,
    *,
    guide: Guidance = extrapolate,
    detach_unconditional: bool = False,
) -> Velocity:
    """The velocity under N texts, led away from the negative one; scale 1 is ``c`` in one pass.

    Both branches go through the network as one batch where their texts have one length. Otherwise
    in two: padding would change the picture of a network without a text mask.
    ``detach_unconditional``: gradients flow through c alone (as Flow-GRPO scores).
    """
    if guidance_scale == 1:
        return lambda latents, sigma: velocity(latents, sigma, texts)
    if negative is None:
        raise ValueError(
            f"guidance_scale {guidance_scale} needs negative_embeds; give them, or scale 1 (no "
            "guidance)"
        )
    negatives = negative.repeated(len(texts))

    def combined(latents: Tensor, sigma: Tensor) -> Tensor:
        unconditional, conditional = _both(velocity, latents, sigma, negatives, texts)
        if detach_unconditional:
            unconditional = unconditional.detach()
        return guide(unconditional, conditional, guidance_scale)

    return combined


def _both(
    velocity: ConditionalVelocity,
    latents: Tensor,
    sigma: Tensor,
    first: TextEmbeds,
    second: TextEmbeds,
) -> tuple[Tensor, Tensor]:
    """The velocity under two conditions, in one batch if their shapes allow."""
    if first.embeds.shape != second.embeds.shape:
        return velocity(latents, sigma, first), velocity(latents, sigma, second)
    both = velocity(torch.cat([latents, latents]), torch.cat([sigma, sigma]), first.then(second))
    first_half, second_half = both.chunk(2)
    return first_half, second_half
