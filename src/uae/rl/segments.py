"""A trajectory image → caption → image, cut where the policy changes: caption actions, then
image actions.

Where both halves have probabilities (an autoregressive decoder, or a stochastic sampler), one
reward judges the whole trajectory: both segments take its advantage, and each action counts as one
of all the trajectory's actions. Where the decoder is a frozen ODE there is the caption segment
alone; or, where the decoder learns from finished latents (``updates.py``), an image segment of no
actions.
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
from uae.utils.processes import gather, slice_of


@dataclass(frozen=True)
class Segment:
    """One policy's actions in B trajectories, and how each trajectory compares with its
    siblings."""

    is_painting: bool
    """Whether its actions paint, else they caption."""
    policy: Policy
    rollout: Rollout
    advantages_B: Float[Tensor, " B"]
    lengths_B: Float[Tensor, " B"]
    """Actions of the whole trajectory, this segment's and the other's."""
    weight: float
    """Of this segment's loss."""
    objective: Objective
    counts: BatchCounts
    """Of all processes."""
    first: int = 0
    """Place of its first sequence among those of all processes."""

    @property
    def name(self) -> str:
        """The prefix of its metrics."""
        return "rl_image" if self.is_painting else "rl"


def trained_segments(
    model: UnifiedModel,
    captions: Captions | None,
    reconstructions: Reconstructions,
    rewards_PGK: Float[Tensor, "P G K"],
    config: TrainConfig,
    places: range | None = None,
) -> list[Segment]:
    """What is learnt from a rollout, which is of ``places`` among the P inputs that all processes
    have rewards of; by default of all.

    At K = 1 reconstructions are compared as trajectories, within the G of an image; else within the
    K of their caption, or of the prompt where there are no captions.
    """
    objective, num_per_caption = config.objective, reconstructions.group_size
    text = captions.rollout if captions and config.caption_weight else None
    image = reconstructions.rollout if config.image_weight else None
    places = places or range(len(rewards_PGK))
    own = slice_of(places)
    text_lengths = _lengths(text, rewards_PGK[own, :, 0])
    image_lengths = _lengths(image, rewards_PGK[own])
    max_length = config.captioning.max_new_tokens if text is not None else 0
    max_length += image.mask.shape[1] if image is not None else 0
    scaling = objective.scale_rewards, objective.advantage_clamp
    segments = []
    if text is not None:
        advantages = caption_advantages(rewards_PGK, *scaling)[own].flatten()
        lengths_B = text_lengths + rearrange(image_lengths, "(b k) -> b k", k=num_per_caption).mean(
            1
        )
        counts, weight = _counts(text, lengths_B, max_length), config.caption_weight
        learnt = text, advantages, lengths_B, weight, objective, counts
        first = places.start * rewards_PGK.shape[1]
        segments.append(Segment(False, model.encoder, *learnt, first))
    if image is not None:
        if config.image_kl_coef is not None:
            objective = replace(objective, kl_coef=config.image_kl_coef)
        if config.decoder_update != "policy_gradient":
            scaling = "batch", None  # each loss clips them itself
        advantages = reconstruction_advantages(rewards_PGK, *scaling)[own].flatten()
        lengths_B = image_lengths + text_lengths.repeat_interleave(num_per_caption)
        counts, weight = _counts(image, lengths_B, max_length), config.image_weight
        learnt = image, advantages, lengths_B, weight, objective, counts
        first = places.start * rewards_PGK[0].numel()
        segments.append(Segment(True, model.decoder, *learnt, first))
    return segments


def _lengths(rollout: Rollout | None, like: Tensor) -> Float[Tensor, " B"]:
    """Actions of each sequence; none where there is no rollout."""
    return like.new_zeros(like.numel()) if rollout is None else rollout.mask.sum(1).float()


def _counts(rollout: Rollout, lengths_B: Tensor, max_length: int) -> BatchCounts:
    """Of all processes."""
    own = len(rollout), rollout.mask.sum().item(), lengths_B.sum().item()
    sequences, actions, trajectory_actions = (
        int(sum(each)) for each in zip(*gather(own), strict=True)
    )
    return BatchCounts(sequences, actions, max_length, trajectory_actions)
