"""The result of Unified-Bench: scores by backbone, the strict Unified-Score, and the JSON in the
official layout.

The official keys hold plain cosines; what we add stands under ``uae`` and is times 100.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import uae
from uae.bench.result import Interval, versions
from uae.similarity.checkpoints import ARCHITECTURES

BACKBONES = tuple(ARCHITECTURES)


@dataclass(frozen=True)
class BackboneScore:
    """One backbone's answer on all valid pairs."""

    similarities: dict[str, float]
    """Cosine of each pair, by name."""
    shuffled: float | None
    """Mean cosine of mismatched pairs, times 100; None with a single pair."""
    interval: Interval
    """Confidence interval of the score, by bootstrap."""
    provenance: dict[str, Any]
    """Which weights answered."""
    preprocess: dict[str, Any]
    """How images were prepared."""

    @property
    def score(self) -> float:
        return 100 * float(np.mean(list(self.similarities.values())))

    @property
    def rescaled(self) -> float | None:
        """0 for shuffled pairs, 100 for identical images."""
        if self.shuffled is None or self.shuffled >= 100:
            return None
        return 100 * (self.score - self.shuffled) / (100 - self.shuffled)


@dataclass(frozen=True)
class UnifiedResult:
    """Scores by backbone, what is missing, and how it was measured."""

    scores: dict[str, BackboneScore]
    """Backbones that answered."""
    failures: dict[str, str]
    """Backbones that did not, with the reason."""
    overall_interval: Interval | None
    """Confidence interval of the Unified-Score; None if partial."""
    total_images: int
    """Source images given, scored or not."""
    unscored: dict[str, str]
    """Source images that could not be scored, with the reason."""
    extra_reconstructions: list[str]
    """Reconstructions without a source."""
    settings: dict[str, Any]
    """What else the numbers depend on."""
    model: dict[str, Any] | None = None
    """Which model made the reconstructions, if that is known."""

    @property
    def partial(self) -> bool:
        """A backbone is missing."""
        return set(self.scores) != set(BACKBONES)

    @property
    def valid_pairs(self) -> int:
        return self.total_images - len(self.unscored)

    @property
    def unified_score(self) -> float | None:
        """Plain mean of the four backbones; None if partial."""
        return (
            None
            if self.partial
            else float(np.mean([score.score for score in self.scores.values()]))
        )

    @property
    def rescaled_score(self) -> float | None:
        """Plain mean of the four rescaled scores; None if partial or if there was nothing to
        shuffle."""
        rescaled = [score.rescaled for score in self.scores.values() if score.rescaled is not None]
        return float(np.mean(rescaled)) if len(rescaled) == len(BACKBONES) else None

    @property
    def status(self) -> str:
        """ "complete", or what is missing and why."""
        if not self.partial:
            return "complete"
        missing = ", ".join(f"{name} - {reason}" for name, reason in self.failures.items())
        return f"partial ({len(self.scores)}/{len(BACKBONES)}: missing {missing})"

    def rows(self) -> list[dict[str, Any]]:
        """The cosines of each image, and their mean where no backbone is missing."""
        names = list(next(iter(self.scores.values())).similarities)
        rows = []
        for name in names:
            cosines = {
                backbone: score.similarities[name] for backbone, score in self.scores.items()
            }
            mean = None if self.partial else float(np.mean(list(cosines.values())))
            rows.append({"image": name, **cosines, "unified": mean})
        return rows

    def to_json(self) -> dict[str, Any]:
        """The official keys (plain cosines), and ours under ``uae`` (times 100)."""
        averages = {name: score.score / 100 for name, score in self.scores.items()}
        return {
            "model_types": list(self.scores),
            "similarities_by_model": {
                name: score.similarities for name, score in self.scores.items()
            },
            "statistics_by_model": {
                name: self.statistics(score) for name, score in self.scores.items()
            },
            "summary": {
                "models_used": list(self.scores),
                "average_scores_by_model": averages,
                "overall_average": None if self.unified_score is None else self.unified_score / 100,
                "best_model": max(averages, key=averages.__getitem__),
                "worst_model": min(averages, key=averages.__getitem__),
            },
            "uae": self.details(),
        }

    def statistics(self, score: BackboneScore) -> dict[str, Any]:
        cosines = score.similarities.values()
        return {
            "total_images": self.total_images,
            "valid_pairs": len(cosines),
            "average_similarity": score.score / 100,
            "min_similarity": min(cosines),
            "max_similarity": max(cosines),
        }

    def details(self) -> dict[str, Any]:
        return {
            "version": uae.__version__,
            "status": self.status,
            "partial": self.partial,
            "unified_score": self.unified_score,
            "unified_score_interval": self.overall_interval and asdict(self.overall_interval),
            "rescaled_score": self.rescaled_score,
            "backbones": {
                name: {
                    "score": score.score,
                    "interval": asdict(score.interval),
                    "shuffled": score.shuffled,
                    "rescaled": score.rescaled,
                    "provenance": score.provenance,
                    "preprocess": score.preprocess,
                }
                for name, score in self.scores.items()
            },
            "failures": self.failures,
            "total_images": self.total_images,
            "valid_pairs": self.valid_pairs,
            "unscored": self.unscored,
            "extra_reconstructions": self.extra_reconstructions,
            "settings": self.settings,
            "versions": versions(),
            **({"model": self.model} if self.model else {}),
        }
