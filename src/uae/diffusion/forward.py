"""Learning on the forward process: finished pictures are noised again and the velocity there is
regressed, led by their advantages. No step needs a probability, so rollouts are the plain ODE.

With clean latents ``x``, noise ``ε``, ``x_t = (1 − t) x + t ε`` (``schedule.add_noise``), the
target ``v* = ε − x``, the network's velocity ``v``, that of a fast average of its weights
``v_old``, that before training ``v_ref``, and the advantage ``A`` of a picture:

    DiffusionNFT (arXiv 2509.16117, Eq. 5 and Alg. 1; constants of the released code)
        r  = ½ + ½ clip(A, ±C) / C
        v⁺ = β v + (1 − β) v_old,   v⁻ = (1 + β) v_old − β v,   x̂± = x_t − t v±
        ℓ± = mean((x̂± − x)²) / w±,  w± = mean|x̂± − x|, a constant to the gradient
        L  = C (r ℓ⁺ + (1 − r) ℓ⁻) / β + c_ref mean((v − v_ref)²)

    AWM, advantage-weighted matching (arXiv 2509.25050; constants of the released code)
        log p = −t ((m + δ)^q − δ^q) / q,   m = mean((v − v*)²)
        ρ = p / p_before,   a = clip(A, ±C) / C
        L = −min(ρ a, clip(ρ, 1 ± ε) a)
            + c_old mean((v − v_old)²) + c_ref mean((v − v_ref)²)

With ``e = v_old − v*`` and ``d = v − v_old``, without weights w and factors, NFT's sum is
``‖e‖² + 2β(2r − 1) e·d + β²‖d‖²``: matching, weighted by the advantage and linear
about the old velocity, and a pull to it. At ``v = v_old`` its gradient is ``C (2r − 1) t²/w``
times that of ``mean((v − v*)²)``, whatever β is: each branch has a factor β that 1/β takes
out. That of AWM's first term at ρ = 1 is ``a t (m + δ)^(q − 1)`` times the same.

Means are over latent dimensions. Deviation: AWM's times are drawn for each picture, not once for
each batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from uae.utils.ranges import A_SHARE, ABOVE_0, AT_LEAST_0, AT_LEAST_1, check_ranges
from uae.utils.ratios import bounded


@dataclass(frozen=True)
class NFT:
    """DiffusionNFT. The defaults are those of its released code."""

    beta: float = 1.0
    """How far the two implicit velocities are from the old one; 0.1 was published for text in
    images."""
    advantage_clip: float = 5.0
    """C: advantages are clipped to ± this value (the paper: 1)."""
    smallest_weight: float = 1e-5
    """The least that an error is divided by."""
    reference_coef: float = 1e-4
    """Of the squared distance to the velocity before training."""
    num_times: int | None = None
    """Times of the rollout's own that a picture is noised at; by default all but one."""

    def __post_init__(self) -> None:
        positive = dict.fromkeys(("beta", "advantage_clip", "smallest_weight"), ABOVE_0)
        check_ranges(self, positive | {"reference_coef": AT_LEAST_0, "num_times": AT_LEAST_1})


@dataclass(frozen=True)
class AWM:
    """Advantage-weighted matching. The defaults are those of its released code."""

    advantage_clip: float = 5.0
    """C: advantages are clipped to ± this value, and divided by it."""
    ratio_clip: float = 1.0
    """ε: the ratio is clipped at 1 ± this value."""
    power: float = 0.25
    """q: of the matching error in its log-probability; 1 is the error itself."""
    smallest_error: float = 1e-10
    """δ: added to the error before the power."""
    pull_coef: float = 1.0
    """Of the squared distance to the velocity of the old weights."""
    reference_coef: float = 1e-3
    """Of the squared distance to the velocity before training."""
    num_times: int = 6
    """Times that a picture is noised at: one of each of so many strata of the rollout's own."""
    time_fraction: float = 0.9
    """The share of the rollout's times, from noise on, that the strata divide; pure noise is in
    none."""

    def __post_init__(self) -> None:
        positive = ("advantage_clip", "ratio_clip", "power", "smallest_error")
        check_ranges(
            self,
            {
                **dict.fromkeys(positive, ABOVE_0),
                **dict.fromkeys(("pull_coef", "reference_coef"), AT_LEAST_0),
                "num_times": AT_LEAST_1,
                "time_fraction": A_SHARE,
            },
        )


class Noised(NamedTuple):
    """N finished pictures, noised, and the velocities there. Gradients flow through ``velocity``
    alone."""

    latents: Float[Tensor, "N c h w"]
    noise: Float[Tensor, "N c h w"]
    sigma: Float[Tensor, " N"]
    velocity: Float[Tensor, "N c h w"]
    old: Float[Tensor, "N c h w"]
    reference: Float[Tensor, "N c h w"]


Losses = tuple[Float[Tensor, " N"], dict[str, Float[Tensor, " N"]]]
"""The loss of each picture, and its parts before their coefficients, to be logged."""


def nft_loss(noised: Noised, advantages: Float[Tensor, " N"], nft: NFT) -> Losses:
    """DiffusionNFT's, of each picture."""
    limit, beta = nft.advantage_clip, nft.beta
    share = 0.5 + 0.5 * advantages.clamp(-limit, limit) / limit
    towards = beta * noised.velocity + (1 - beta) * noised.old
    away = (1 + beta) * noised.old - beta * noised.velocity
    positive = _weighted_error(towards, noised, nft.smallest_weight)
    negative = _weighted_error(away, noised, nft.smallest_weight)
    reference = mean_square(noised.velocity - noised.reference)
    policy = limit * (share * positive + (1 - share) * negative) / beta
    parts = {
        "policy_loss": policy,
        "positive_loss": positive,
        "negative_loss": negative,
        "pull": mean_square(noised.velocity - noised.old),
        "reference_distance": reference,
    }
    return policy + nft.reference_coef * reference, parts


def _weighted_error(
    velocity: Float[Tensor, "N c h w"], noised: Noised, smallest: float
) -> Float[Tensor, " N"]:
    """Of the image that a velocity leads to: ``x̂ − x = t (v* − v)``, squared, over its mean
    magnitude."""
    target = noised.noise - noised.latents
    error = rearrange(noised.sigma, "n -> n 1 1 1") * (target - velocity)
    weight = error.detach().abs().flatten(1).mean(1).clamp(min=smallest)
    return mean_square(error) / weight


def awm_log_prob(
    velocity: Float[Tensor, "N c h w"],
    target: Float[Tensor, "N c h w"],
    sigma: Float[Tensor, " N"],
    awm: AWM,
) -> Float[Tensor, " N"]:
    """AWM's likelihood of a picture at its time: its matching error, concave. ``target``: noise
    minus latents."""
    error = mean_square(velocity - target)
    floor, power = awm.smallest_error, awm.power
    return -sigma * ((error + floor) ** power - floor**power) / power


def awm_loss(
    noised: Noised, before: Float[Tensor, " N"] | None, advantages: Float[Tensor, " N"], awm: AWM
) -> Losses:
    """Advantage-weighted matching's, of each picture; ``before`` are its log-probabilities under
    the weights of the rollout, None where those are the weights now."""
    log_prob = awm_log_prob(noised.velocity, noised.noise - noised.latents, noised.sigma, awm)
    ratio = bounded(log_prob - (log_prob.detach() if before is None else before)).exp()
    advantages = advantages.clamp(-awm.advantage_clip, awm.advantage_clip) / awm.advantage_clip
    clipped = ratio.clamp(1 - awm.ratio_clip, 1 + awm.ratio_clip)
    policy = -torch.minimum(ratio * advantages, clipped * advantages)
    pull = mean_square(noised.velocity - noised.old)
    reference = mean_square(noised.velocity - noised.reference)
    parts = {
        "policy_loss": policy,
        "log_prob": log_prob,
        "ratio_mean": ratio,
        "pull": pull,
        "reference_distance": reference,
    }
    return policy + awm.pull_coef * pull + awm.reference_coef * reference, parts


def mean_square(values: Float[Tensor, "N c h w"]) -> Float[Tensor, " N"]:
    """Over latent dimensions."""
    return values.square().flatten(1).mean(1)


def norm_ratio(
    velocity: Float[Tensor, "N c h w"], reference: Float[Tensor, "N c h w"]
) -> Float[Tensor, " N"]:
    """``‖v‖ / ‖v_ref‖``, which these losses inflate before pictures grow worse."""
    return velocity.detach().flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)


def nft_steps(draws: Float[Tensor, "N steps"], num_times: int | None) -> Int[Tensor, "N times"]:
    """The steps whose times a picture is noised at, all different, by uniform ``draws``: the order
    of these."""
    num_steps = draws.shape[1]
    if num_times is None:
        num_times = max(num_steps - 1, 1)
    return draws.argsort(1)[:, :num_times]


def awm_steps(
    draws: Float[Tensor, "N times"], num_steps: int, time_fraction: float
) -> Int[Tensor, "N times"]:
    """One step of each stratum, by uniform ``draws``; the first step, pure noise, is in none where
    there is another."""
    first = min(1, num_steps - 1)
    last = max(first, int(num_steps * time_fraction))
    edges = torch.linspace(first, last, draws.shape[1] + 1).long().clamp(max=num_steps - 1)
    return edges[:-1] + (draws * (edges[1:] - edges[:-1])).long()
