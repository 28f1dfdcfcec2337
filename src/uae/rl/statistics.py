"""What is logged of a rollout; names are explained in ``docs/metrics.md``."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from uae.rl.hacking import caption_signs
from uae.types import Captions, Reconstructions


def reward_metrics(
    rewards_PGK: Float[Tensor, "P G K"], breakdown: Mapping[str, Tensor]
) -> dict[str, float]:
    """Mean total, its spread within groups, the share of groups without any, and each component's
    mean."""
    per_caption_PG = rewards_PGK.mean(-1)
    spread_P = per_caption_PG.std(1) if per_caption_PG.shape[1] > 1 else rewards_PGK[:, 0].std(1)
    return {
        "reward/total": rewards_PGK.mean().item(),
        "reward/group_std": spread_P.mean().item(),
        "reward/tied_frac": (spread_P == 0).float().mean().item(),
        **{f"reward/{name}": values.mean().item() for name, values in breakdown.items()},
    }


def caption_metrics(captions: Captions) -> dict[str, float]:
    """Length in tokens (end token included); shares cut at the cap, empty, and distinct within
    their group."""
    lengths = captions.rollout.mask.sum(1).float()
    texts, group = captions.texts, captions.group_size
    distinct = [len(set(texts[i : i + group])) for i in range(0, len(texts), group)]
    return {
        "caption/tokens": lengths.mean().item(),
        "caption/truncated_frac": captions.truncated.float().mean().item(),
        "caption/empty_frac": sum(not text for text in texts) / len(texts),
        "caption/distinct_frac": sum(distinct) / len(texts),
        **caption_signs(texts),
    }


def time_metrics(
    captions: Captions, reconstructions: Reconstructions, phases: Mapping[str, float]
) -> dict[str, float]:
    """Seconds of the phases and of the whole step; caption tokens and reconstructions per second of
    it."""
    step_sec = sum(phases.values())
    return {
        **phases,
        "time/step": step_sec,
        "time/tokens_per_sec": captions.rollout.mask.sum().item() / step_sec,
        "time/images_per_sec": len(reconstructions.images) / step_sec,
    }
