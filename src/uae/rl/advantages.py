"""Group-relative advantages: how much better a caption is than its siblings.

For the G captions of one image with rewards R_1..R_G (GRPO, arXiv 2402.03300; std with ddof=1, as
TRL):

    A_i = (R_i - mean(R)) / (std(R) + 1e-4)

``scale`` chooses the divisor: ``"group"`` as above; ``"none"`` keeps ``R_i - mean(R)`` (Dr. GRPO,
arXiv 2503.20783); ``"batch"`` takes the std over every reward of the step (Flow-GRPO, arXiv
2505.05470).

With K reconstructions per caption the rewards are ``[P, G, K]``: a caption is worth the mean over
its K reconstructions, a reconstruction is compared with the K of its own caption.

Deviation: a group whose rewards all tie gets exactly zero, where rounding of the mean would leave
dust.

Suffixes: P images, G captions per image, K reconstructions per caption.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

RewardScale = Literal["group", "batch", "none"]
STD_EPS = 1e-4


def group_advantages(
    rewards_PG: Float[Tensor, "P G"], scale: RewardScale = "group", clamp: float | None = None
) -> Float[Tensor, "P G"]:
    """Each reward relative to its row. The rows are those of all processes."""
    _check_rewards(rewards_PG)
    rewards = rewards_PG.double()
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if scale == "group":
        centred = centred / (rewards.std(dim=1, correction=1, keepdim=True) + STD_EPS)
    elif scale == "batch":
        centred = centred / (rewards.std(correction=1) + STD_EPS)
    is_tied_P1 = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    advantages = torch.where(is_tied_P1, 0.0, centred)
    return (advantages if clamp is None else advantages.clamp(-clamp, clamp)).float()


def caption_advantages(
    rewards_PGK: Float[Tensor, "P G K"], scale: RewardScale = "group", clamp: float | None = None
) -> Float[Tensor, "P G"]:
    """A caption's reward is the mean over its K reconstructions, compared within its image's G
    captions."""
    _check_rewards(rewards_PGK)
    return group_advantages(reduce(rewards_PGK, "P G K -> P G", "mean"), scale, clamp)


def reconstruction_advantages(
    rewards_PGK: Float[Tensor, "P G K"], scale: RewardScale = "group", clamp: float | None = None
) -> Float[Tensor, "P G K"]:
    """Within the K reconstructions of one caption; at K = 1 the whole trajectory's, within the G
    captions."""
    _check_rewards(rewards_PGK)
    num_captions, num_reconstructions = rewards_PGK.shape[1:]
    if num_reconstructions == 1:
        return repeat(caption_advantages(rewards_PGK, scale, clamp), "P G -> P G 1")
    advantages = group_advantages(rearrange(rewards_PGK, "P G K -> (P G) K"), scale, clamp)
    return rearrange(advantages, "(P G) K -> P G K", G=num_captions)


def _check_rewards(rewards: Tensor) -> None:
    """Finite rewards in groups of at least two, or a ValueError that says which one is wrong."""
    bad = (~torch.isfinite(rewards)).nonzero()
    if len(bad):
        axes = ("image", "caption", "reconstruction")[: rewards.ndim]
        where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, bad[0].tolist(), strict=True))
        value = rewards[tuple(bad[0])].item()
        raise ValueError(
            f"reward at {where} is {value} ({len(bad)} of {rewards.numel()} are not finite); "
            "every reward must be a finite number. Fix the reward: a failed one must raise, not "
            "return nan."
        )
    if max(rewards.shape[1:], default=0) < 2:
        raise ValueError(
            f"got rewards of shape {list(rewards.shape)}: a group of one has nothing to be "
            "compared with, so every advantage would be zero. Set group_size to 2 or more."
        )
