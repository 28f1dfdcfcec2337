"""A trajectory image → caption → image, cut where the policy changes: caption actions, then image
actions.

Where both halves have probabilities (an autoregressive decoder, or a stochastic sampler), one
reward judges the whole trajectory: both segments take its advantage, and each action counts as one
of all the trajectory's actions. Where the decoder is a frozen ODE there is the caption segment
alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from uae.models.base import UnifiedModel
from uae.rl.advantages import caption_advantages, reconstruction_advantages
from uae.rl.config import TrainConfig
from uae.rl.losses import BatchCounts, Objective
from uae.types import Captions, Policy, Reconstructions, Rollout


@dataclass(frozen=True)
class Segment:
    """One policy's actions in B trajectories, and how each trajectory compares with its
    siblings."""

    name: str
    """``rl`` for captions, ``rl_image`` for images: the prefix of its metrics."""
    policy: Policy
    rollout: Rollout
    advantages_B: Float[Tensor, " B"]
    lengths_B: Float[Tensor, " B"]
    """Actions of the whole trajectory, this segment's and the other's."""
    weight: float
    """Of this segment's loss."""
    objective: Objective
    counts: BatchCounts


def trained_segments(
    model: UnifiedModel,
    captions: Captions,
    reconstructions: Reconstructions,
    rewards_PGK: Float[Tensor, "P G K"],
    config: TrainConfig,
) -> list[Segment]:
    """What is learnt from a rollout. At K = 1 reconstructions are compared as trajectories, within
    the G of an image; else within the K of their caption."""
    objective, per_caption = config.objective, reconstructions.group_size
    said = captions.rollout if config.caption_weight else None
    painted = reconstructions.rollout if config.image_weight else None
    said_B, painted_B = _lengths(said, rewards_PGK[..., 0]), _lengths(painted, rewards_PGK)
    max_length = config.captioning.max_new_tokens if said is not None else 0
    max_length += painted.mask.shape[1] if painted is not None else 0
    segments = []
    if said is not None:
        advantages = caption_advantages(
            rewards_PGK, objective.scale_rewards, objective.advantage_clamp
        ).flatten()
        lengths_B = said_B + rearrange(painted_B, "(b k) -> b k", k=per_caption).mean(1)
        counts = _counts(said, lengths_B, max_length)
        weight = config.caption_weight
        segments.append(
            Segment("rl", model.encoder, said, advantages, lengths_B, weight, objective, counts)
        )
    if painted is not None:
        advantages = reconstruction_advantages(
            rewards_PGK, objective.scale_rewards, objective.advantage_clamp
        )
        lengths_B = painted_B + said_B.repeat_interleave(per_caption)
        counts = _counts(painted, lengths_B, max_length)
        kl_coef = objective.kl_coef if config.image_kl_coef is None else config.image_kl_coef
        objective, weight = replace(objective, kl_coef=kl_coef), config.image_weight
        segments.append(
            Segment(
                "rl_image",
                model.decoder,
                painted,
                advantages.flatten(),
                lengths_B,
                weight,
                objective,
                counts,
            )
        )
    return segments


def _lengths(rollout: Rollout | None, like: Tensor) -> Float[Tensor, " B"]:
    """Actions of each sequence; none where there is no rollout."""
    return like.new_zeros(like.numel()) if rollout is None else rollout.mask.sum(1).float()


def _counts(rollout: Rollout, lengths_B: Tensor, max_length: int) -> BatchCounts:
    return BatchCounts(len(rollout), int(rollout.mask.sum()), max_length, int(lengths_B.sum()))
