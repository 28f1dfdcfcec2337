"""Unified-Bench, Protocol 1: how much of an image survives image -> caption -> image (arXiv
2509.09666).

For each backbone ``s = 100 * mean_i cos(f(x_i), f(x̂_i))``, each with its own preprocessing;
``Unified-Score = plain mean over the four backbones`` clip, longclip, dinov2, dinov3.

Deviations from the official scorer: the overall is strict (a backbone that is missing or fails
makes the result *partial* and its Unified-Score None, where the official one averages the rest);
images that could not be scored are listed; bootstrap confidence intervals; and a rescaled score
``(s - s_shuffled) / (100 - s_shuffled) * 100``, where ``s_shuffled`` is the mean over all
mismatched pairs (i, j != i), so that 0 means "no better than another image".
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from uae.bench.result import Interval
from uae.bench.unified.pairing import LazyImages, Pairing
from uae.bench.unified.result import BACKBONES, BackboneScore, UnifiedResult
from uae.images.read import ImageError
from uae.similarity.backbones import Backbone, load_backbone
from uae.similarity.checkpoints import BackboneError, architecture_of, check_backbone_source
from uae.utils.progress import track

CONFIDENCE = 0.95
# [N 3 h w], or N of [3 h w]; no item type, so that checking types reads no file
Images = Tensor | Sequence
Loaders = Mapping[str, Callable[[], Backbone]]


@dataclass(frozen=True)
class ScoreSettings:
    """How pairs are scored."""

    batch_size: int = 16
    """Pairs at a time."""
    num_bootstrap: int = 2000
    """Resamples of the images, for confidence intervals."""
    seed: int = 0
    """Of the resamples."""
    device: str = "cpu"
    """Where backbones that are loaded by name run."""
    allow_partial: bool = False
    """Go on without a backbone whose source can't be used, as long as there are others."""

    def recorded(self) -> dict[str, Any]:
        """What the numbers depend on."""
        return {
            "num_bootstrap": self.num_bootstrap,
            "seed": self.seed,
            "confidence": CONFIDENCE,
            "batch_size": self.batch_size,
        }


@dataclass(frozen=True)
class Pairs:
    """N sources and their reconstructions, and what belongs to no pair.

    Sequences are read a batch at a time; an item that raises ``ImageError`` is reported as
    unscored.
    """

    names: list[str]
    sources: Images
    reconstructions: Images
    unmatched_sources: Mapping[str, str] = field(default_factory=dict)
    unmatched_reconstructions: Sequence[str] = ()

    def __post_init__(self) -> None:
        sources, reconstructions = len(self.sources), len(self.reconstructions)
        names = len(set(self.names))
        if not sources == reconstructions == names == len(self.names):
            raise ValueError(
                "expected as many sources, reconstructions and different names, got "
                f"{sources}, {reconstructions} and {names}"
            )
        if not self.names:
            raise ValueError("expected at least one pair of images, got none")


def score_pairs(
    sources: Images,
    reconstructions: Images,
    backbones: Mapping[str, Backbone],
    names: Sequence[str] | None = None,
    settings: ScoreSettings = ScoreSettings(),
) -> UnifiedResult:
    """Score N reconstructions against their sources: ``[N 3 h w]``, or sequences of ``[3 h w]`` of
    any sizes."""
    for name in backbones:
        architecture_of(name)
    loaders = {name: lambda backbone=backbone: backbone for name, backbone in backbones.items()}
    names = [str(i) for i in range(len(sources))] if names is None else list(names)
    return score_with(loaders, Pairs(names, sources, reconstructions), settings)


def unified_score(
    sources: Images, reconstructions: Images, backbones: str | None = None, device: str = "cpu"
) -> float:
    """The Unified-Score of N reconstructions: the mean of four backbones' cosine to the source, 100
    for identical images.

    sources, reconstructions: ``[N, 3, h, w]`` in [0, 1], or as many ``[3, h, w]`` of any sizes.
    backbones: None for the published checkpoints, ``tiny`` for the embedded world's own, which say
    something of its scenes alone.

    Raises:
        ValueError: when a backbone cannot be loaded or fails, or numbers of images differ.

    ``score_pairs`` gives the scores of each backbone and image, and intervals.

    >>> import torch, uae
    >>> images = torch.rand(2, 3, 48, 48)
    >>> round(uae.unified_score(images, images, backbones="tiny"))
    100
    """
    loaded = {name: load_backbone(name, backbones, device=device) for name in BACKBONES}
    result = score_pairs(sources, reconstructions, loaded)
    if result.unified_score is None:
        raise ValueError(f"expected all four backbones to answer, the result is {result.status}")
    return result.unified_score


def score_files(
    pairing: Pairing,
    backbones: Mapping[str, str | Path | None],
    settings: ScoreSettings,
    unusable: Mapping[str, str],
    recorded: Mapping[str, Any],
) -> UnifiedResult:
    """Score files that were paired, with backbones loaded by name, one in memory at a time.

    unusable: backbones to do without, with the reason. recorded: what else the numbers depend on.
    """
    for remark in pairing.remarks:
        print(remark, file=sys.stderr)
    loaders = {
        name: lambda name=name, source=source: load_backbone(name, source, device=settings.device)
        for name, source in backbones.items()
        if name not in unusable
    }
    pairs = Pairs(
        pairing.names,
        LazyImages(pairing.sources),
        LazyImages(pairing.reconstructions),
        pairing.unmatched_sources,
        pairing.unmatched_reconstructions,
    )
    return score_with(loaders, pairs, settings, unusable, recorded)


def check_backbones(
    backbones: Mapping[str, str | Path | None], allow_partial: bool
) -> dict[str, str]:
    """Backbones that the result must do without, with the reason; an error unless it may, and has
    others. A name that is none of the four is always one."""
    unusable = {}
    for name, source in backbones.items():
        architecture_of(name)
        try:
            check_backbone_source(name, source)
        except BackboneError as error:
            unusable[name] = str(error)
    if unusable and not (allow_partial and len(unusable) < len(backbones)):
        raise BackboneError("\n".join(unusable.values()))
    return unusable


def score_with(
    loaders: Loaders,
    pairs: Pairs,
    settings: ScoreSettings,
    unusable: Mapping[str, str] | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> UnifiedResult:
    """One backbone after the other over all pairs, then statistics over those that answered."""
    measured: dict[str, Measurement] = {}
    failures = dict(unusable or {})
    for name in BACKBONES:
        if name not in loaders:
            failures.setdefault(name, "not asked for")
            continue
        try:
            measured[name] = measure(loaders[name](), pairs, settings.batch_size)
        except NoPairsError:
            raise
        except Exception as error:  # out of memory, NaN …: the result says so and is partial
            failures[name] = f"{type(error).__name__}: {error}"
    if not measured:
        raise ValueError(
            "no backbone could score: " + "; ".join(f"{n} - {r}" for n, r in failures.items())
        )
    broken = next(iter(measured.values())).broken
    scores, overall = summarise(measured, settings.num_bootstrap, settings.seed)
    return UnifiedResult(
        scores=scores,
        failures={name: failures[name] for name in BACKBONES if name in failures},
        overall_interval=overall if len(scores) == len(BACKBONES) else None,
        total_images=len(pairs.names) + len(pairs.unmatched_sources),
        unscored={**pairs.unmatched_sources, **broken},
        extra_reconstructions=list(pairs.unmatched_reconstructions),
        settings={**settings.recorded(), **(recorded or {})},
    )


class NoPairsError(ValueError):
    """Not one pair could be read."""


@dataclass(frozen=True)
class Measurement:
    """Raw cosines of one backbone."""

    similarities: dict[str, float]
    shuffled: float | None
    broken: dict[str, str]
    provenance: dict[str, Any]
    preprocess: dict[str, Any]


@torch.no_grad()
def measure(backbone: Backbone, pairs: Pairs, batch_size: int) -> Measurement:
    """Cosine of every readable pair, batch by batch, and the mean cosine of mismatched pairs.

    The mean over all mismatched pairs needs sums only: ``(Σ_i a_i · Σ_j b_j - Σ_i a_i · b_i) /
    (N (N - 1))``.
    """
    similarities: dict[str, float] = {}
    broken: dict[str, str] = {}
    source_sum = recon_sum = torch.zeros((), dtype=torch.float64)
    starts = range(0, len(pairs.names), batch_size)
    for start in track(starts, f"scoring with {backbone.name}", "batches"):
        batch = read_batch(pairs, range(start, min(start + batch_size, len(pairs.names))), broken)
        if not batch:
            continue
        a = backbone.embed([source for source, _ in batch.values()]).double().cpu()
        b = backbone.embed([recon for _, recon in batch.values()]).double().cpu()
        cosines = (a * b).sum(dim=-1)
        if not cosines.isfinite().all():
            bad = list(batch)[int((~cosines.isfinite()).nonzero()[0])]
            raise ValueError(f"the embedding of {bad} is not finite")
        similarities |= dict(zip(batch, cosines.tolist(), strict=True))
        source_sum, recon_sum = source_sum + a.sum(dim=0), recon_sum + b.sum(dim=0)
    if not similarities:
        examples = "; ".join(f"{name}: {reason}" for name, reason in list(broken.items())[:3])
        raise NoPairsError(f"no pair could be read, all {len(pairs.names)} failed ({examples})")
    n = len(similarities)
    mismatched = float((source_sum * recon_sum).sum()) - sum(similarities.values())
    return Measurement(
        similarities=similarities,
        shuffled=100 * mismatched / (n * (n - 1)) if n > 1 else None,
        broken=broken,
        provenance=asdict(backbone.provenance),
        preprocess=asdict(backbone.preprocess),
    )


def read_batch(
    pairs: Pairs, places: range, broken: dict[str, str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The readable pairs of a batch by name; reasons of the others go to ``broken``."""
    batch = {}
    for i in places:
        try:
            batch[pairs.names[i]] = (pairs.sources[i], pairs.reconstructions[i])
        except (ImageError, FileNotFoundError) as error:
            broken[pairs.names[i]] = str(error)
    return batch


# --- statistics ----------------------------------------------------------------------------------


def summarise(
    measured: Mapping[str, Measurement], num_bootstrap: int, seed: int
) -> tuple[dict[str, BackboneScore], Interval]:
    """Scores with confidence intervals; the second value is the interval of the mean over these
    backbones."""
    pairs = list(next(iter(measured.values())).similarities)
    cosines = torch.tensor(
        [[m.similarities[name] for m in measured.values()] for name in pairs], dtype=torch.float64
    )
    *intervals, overall = bootstrap_intervals(cosines, num_bootstrap, seed)
    scores = {
        name: BackboneScore(m.similarities, m.shuffled, interval, m.provenance, m.preprocess)
        for (name, m), interval in zip(measured.items(), intervals, strict=True)
    }
    return scores, overall


def bootstrap_intervals(
    cosines: Float[Tensor, "N M"], num_bootstrap: int, seed: int
) -> list[Interval]:
    """Percentile intervals of M means over N images, and of the mean of the M; images are drawn
    with replacement."""
    values = (
        np.concatenate([cosines.numpy(), cosines.numpy().mean(axis=1, keepdims=True)], axis=1) * 100
    )
    rng = np.random.default_rng(seed)
    means = [
        values[rng.integers(len(values), size=len(values))].mean(axis=0)
        for _ in range(num_bootstrap)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]
