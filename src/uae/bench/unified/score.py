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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from uae.bench.result import Interval
from uae.bench.unified.measure import (
    NO_CACHE,
    Images,
    Measurement,
    Outcome,
    Pairs,
    measure,
    reason_of,
)
from uae.bench.unified.pairing import LazyImages, Pairing
from uae.bench.unified.result import BACKBONES, BackboneScore, UnifiedResult
from uae.similarity.backbones import Backbone, load_backbone
from uae.similarity.cache import EmbeddingCache
from uae.similarity.checkpoints import BackboneError, architecture_of, check_backbone_source
from uae.utils.device import free_memory
from uae.utils.processes import gather, is_main

CONFIDENCE = 0.95
ROOM = 3  # times a backbone's weights, for another beside it
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
    is_shared: bool = False
    """Several processes score together, each a share of the pairs."""

    def recorded(self) -> dict[str, Any]:
        """What the numbers depend on."""
        return {
            "num_bootstrap": self.num_bootstrap,
            "seed": self.seed,
            "confidence": CONFIDENCE,
            "batch_size": self.batch_size,
        }


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
    cache: EmbeddingCache = NO_CACHE,
) -> UnifiedResult:
    """Score files that were paired, with backbones loaded by name, as many at a time as there is
    memory for.

    unusable: backbones to do without, with the reason. recorded: what else the numbers depend on.
    cache: of embeddings.
    """
    for remark in pairing.remarks if is_main() else ():
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
    return score_with(loaders, pairs, settings, unusable, recorded, cache)


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
    cache: EmbeddingCache = NO_CACHE,
) -> UnifiedResult:
    """All backbones over all pairs, then statistics over those that answered."""
    measured: dict[str, Measurement] = {}
    failures = {name: "not asked for" for name in BACKBONES if name not in loaders}
    failures |= unusable or {}
    for name, outcome in _measured(loaders, pairs, settings, cache):
        if isinstance(outcome, Measurement):
            measured[name] = outcome
        else:  # out of memory, NaN …: the result says so and is partial
            failures[name] = outcome
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


def _measured(
    loaders: Loaders, pairs: Pairs, settings: ScoreSettings, cache: EmbeddingCache
) -> Iterator[tuple[str, Outcome]]:
    """Of each backbone, as many at a time as there is memory for; several processes do as the one
    that has least, or that could not load."""
    group: dict[str, Backbone] = {}
    from_all: Callable[[Any], list[Any]] = gather if settings.is_shared else lambda value: [value]

    def measured() -> Iterator[tuple[str, Outcome]]:
        yield from measure(group, pairs, settings.batch_size, cache, settings.is_shared).items()
        group.clear()

    for name in (name for name in BACKBONES if name in loaders):
        backbone = _loaded(loaders[name])
        problem = next(filter(None, from_all(backbone if isinstance(backbone, str) else "")), "")
        if problem or isinstance(backbone, str):
            yield name, problem
            continue
        group[name] = backbone
        size = sum(p.numel() * p.element_size() for p in backbone.parameters())
        if min(from_all(free_memory(settings.device))) < ROOM * size:
            yield from measured()
    if group:
        yield from measured()


def _loaded(load: Callable[[], Backbone]) -> Backbone | str:
    """The backbone, or why there is none."""
    try:
        return load()
    except Exception as error:
        return reason_of(error)


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
