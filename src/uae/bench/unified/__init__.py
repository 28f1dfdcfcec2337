"""Unified-Bench, Protocol 1: how much of an image survives image -> caption -> image."""

from uae.bench.unified.result import BACKBONES, UnifiedResult
from uae.bench.unified.score import ScoreSettings, score_pairs, unified_score

__all__ = [
    "BACKBONES",
    "ScoreSettings",
    "UnifiedResult",
    "score_pairs",
    "unified_score",
]
