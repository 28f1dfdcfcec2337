"""Rewards by name and weight; weight 0 is logged only, as a held-out backbone should be."""

from __future__ import annotations

from collections.abc import Mapping

from uae.rewards.backbones import Backbone, check_backbone_source
from uae.rewards.base import WeightedSum
from uae.rewards.reconstruction import ReconstructionReward
from uae.rewards.sources import ARCHITECTURES
from uae.utils.suggest import did_you_mean


def check_rewards(weights: Mapping[str, float], source: str | None) -> None:
    """Every reward exists and can be loaded; cheap, for before any work.

    source: ``tiny`` for the world's backbones, None for the published checkpoints.
    """
    for name in weights:
        if name not in ARCHITECTURES:
            known, hint = ", ".join(ARCHITECTURES), did_you_mean(name, ARCHITECTURES)
            raise ValueError(f"unknown reward {name!r}: expected one of {known}{hint}")
        check_backbone_source(name, source)


def build_reward(weights: Mapping[str, float], backbones: Mapping[str, Backbone]) -> WeightedSum:
    """Cosine rewards of loaded backbones, summed with these weights."""
    return WeightedSum({name: (weight, ReconstructionReward(backbones[name])) for name, weight in weights.items()})
