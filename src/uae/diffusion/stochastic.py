"""Stochastic samplers: denoising as a policy, each step a Gaussian whose sample has a
log-probability (Flow-GRPO).

Two kinds of step from ``x`` at σ to σ_next, with ``Δ = σ_next − σ < 0`` and the velocity
``v`` of ``schedule.py``:

    sde   s = a sqrt(σ / (1 − σ)),   std = s sqrt(−Δ)
          μ = x (1 + s²Δ / 2σ) + v (1 + s²(1 − σ) / 2σ) Δ
    cps   s = σ_next sin(aπ/2),      std = s
          μ = (1 − σ_next)(x − σv) + sqrt(σ_next² − s²) (x + (1 − σ)v)

``sde`` (Flow-GRPO, arXiv 2505.05470) keeps the ODE's marginals in the limit of small steps; ``cps``
(coefficients-preserving sampling, arXiv 2509.05952) keeps the coefficients of signal and noise,
not the marginals. At a = 0 both are the ODE. Near σ = 1 the SDE's denominator takes σ_next, as it
would explode. All in fp32: bf16 would bias the ratio.

Log-probabilities are *means* over latent dimensions: the Gaussian's for ``sde``;
``−mean((x_next − μ)²)`` for ``cps``, as published, which knows no std. The KL to a reference
with mean μ_ref has two forms: ``exact``, ``mean((μ − μ_ref)²) / (2 std²)``, and
``published``, which leaves −Δ out of the SDE's variance: ``mean((μ − μ_ref)²) / (2 s²)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from uae.config import KLForm
from uae.diffusion.sampling import Velocity
from uae.utils.progress import track

StepKind = Literal["sde", "cps"]
NEAR_ONE = 0.995  # above it, σ counts as 1


@dataclass(frozen=True)
class Stochastic:
    """Which steps of a schedule are random, and how much."""

    kind: StepKind = "sde"
    """`sde` or `cps`."""
    noise_level: float = 0.7
    """a; 0 is the ODE."""
    first: int = 0
    """The first random step."""
    num_steps: int | None = None
    """Random steps from there on: a window (Flow-GRPO-Fast); by default all that have a density."""

    def __post_init__(self) -> None:
        if (
            self.kind not in ("sde", "cps")
            or self.noise_level < 0
            or self.first < 0
            or self.num_steps == 0
        ):
            raise ValueError(
                "expected kind sde or cps, noise_level and first at least 0, num_steps above 0; "
                f"got {self}"
            )
        if self.kind == "cps" and self.noise_level > 1:
            raise ValueError(f"expected a noise_level of at most 1 for cps, got {self.noise_level}")

    def is_random(self, sigmas: Float[Tensor, " steps_plus_1"]) -> Bool[Tensor, " steps"]:
        """The steps with a density: those in the window whose std is not 0 (CPS ends without noise
        at σ = 0)."""
        step = torch.arange(len(sigmas) - 1)
        end = len(step) if self.num_steps is None else self.first + self.num_steps
        inside = (step >= self.first) & (step < end)
        return inside & (self.noise_level > 0) & ((self.kind == "sde") | (sigmas[1:] > 0))


class Gaussian(NamedTuple):
    """One step's distribution; ``scale`` is what the published KL divides by."""

    mean: Float[Tensor, "N c h w"]
    std: float
    scale: float


class Path(NamedTuple):
    """A denoising path: latents before, between and after T steps, fp32; zero log-prob where a step
    is not random."""

    latents: Float[Tensor, "N T_plus_1 c h w"]
    log_probs: Float[Tensor, "N T"]
    is_random: Bool[Tensor, " T"]


def step_distribution(
    latents: Float[Tensor, "N c h w"],
    velocity: Float[Tensor, "N c h w"],
    sigma: float,
    next_sigma: float,
    stochastic: Stochastic,
) -> Gaussian:
    """Where one step leads."""
    latents, velocity = latents.float(), velocity.float()
    delta, a = next_sigma - sigma, stochastic.noise_level
    if stochastic.kind == "cps":
        std = next_sigma * math.sin(a * math.pi / 2)
        image, noise = latents - sigma * velocity, latents + (1 - sigma) * velocity
        return Gaussian(
            (1 - next_sigma) * image + math.sqrt(next_sigma**2 - std**2) * noise, std, std
        )
    scale = a * math.sqrt(sigma / (1 - (next_sigma if sigma > NEAR_ONE else sigma)))
    drift = scale**2 / (2 * sigma)
    mean = latents * (1 + drift * delta) + velocity * (1 + drift * (1 - sigma)) * delta
    return Gaussian(mean, scale * math.sqrt(-delta), scale)


def log_prob(
    next_latents: Float[Tensor, "N c h w"], step: Gaussian, kind: StepKind
) -> Float[Tensor, " N"]:
    """Of arriving at ``next_latents``, through which no gradient flows; mean over latent
    dimensions."""
    error = (next_latents.detach().float() - step.mean).square().flatten(1).mean(1)
    if kind == "cps":
        return -error
    return -error / (2 * step.std**2) - math.log(step.std) - 0.5 * math.log(2 * math.pi)


def gaussian_kl(
    step: Gaussian, reference_mean: Float[Tensor, "N c h w"], form: KLForm
) -> Float[Tensor, " N"]:
    """KL(step || reference), a mean over latent dimensions; both have one std."""
    divisor = step.std if form == "exact" else step.scale
    return (step.mean - reference_mean).square().flatten(1).mean(1) / (2 * divisor**2)


def sample_stochastic(
    velocity: Velocity,
    noise: Float[Tensor, "N c h w"],
    sigmas: Float[Tensor, " steps_plus_1"],
    stochastic: Stochastic,
    draws: Float[Tensor, "N T c h w"],
) -> Path:
    """From noise to latents by standard normal ``draws``, one a step; steps that are not random are
    Euler's."""
    levels, is_random = sigmas.tolist(), stochastic.is_random(sigmas.cpu())
    latents = noise.float()
    path, log_probs = [latents], []
    for t, random in enumerate(track(is_random.tolist(), "denoising", "steps")):
        v = velocity(latents, sigmas[t].to(latents).expand(len(latents))).float()
        if random:
            step = step_distribution(latents, v, levels[t], levels[t + 1], stochastic)
            latents = step.mean + step.std * draws[:, t].to(latents)
            log_probs.append(log_prob(latents, step, stochastic.kind))
        else:
            latents = latents + (levels[t + 1] - levels[t]) * v
            log_probs.append(latents.new_zeros(len(latents)))
        path.append(latents)
    return Path(torch.stack(path, 1), torch.stack(log_probs, 1), is_random.to(latents.device))
