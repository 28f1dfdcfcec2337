"""Unified-Bench, Protocol 1: how much of an image survives image -> caption -> image."""

from uae.bench.unified.result import BACKBONES, UnifiedResult
from uae.bench.unified.score import ScoreSettings, run_folders, score_pairs, unified_score

__all__ = [
    "BACKBONES",
    "ScoreSettings",
    "UnifiedResult",
    "run_folders",
    "score_pairs",
    "unified_score",
]
