"""The cosine of each pair of images under some backbones, batch by batch.

Files are read and prepared by several threads, once for all backbones, one batch ahead of the one
that is scored, so memory does not grow with their number. What a cache holds at the start is
neither decoded nor embedded again.

Several processes share the batches. Each tells its embeddings to the others, so that cosines and
sums are computed as one process does, in the order of the images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from uae.bench.unified.pairing import LazyImages
from uae.images.read import ImageError, read_image_bytes
from uae.similarity.backbones import Backbone
from uae.similarity.cache import EmbeddingCache, key_of
from uae.similarity.preprocess import Preprocess
from uae.utils.shares import in_order, own_batches

# [N 3 h w], or N of [3 h w]; no item type, so that checking types reads no file
Images = Tensor | Sequence
Item = TypeVar("Item")
NO_CACHE = EmbeddingCache(None)
NUM_READERS = min(8, os.cpu_count() or 1)


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


Outcome = Measurement | str
"""Of a backbone: what it answered, or why it failed."""


class Embedded(NamedTuple):
    """A batch, as processes tell each other."""

    broken: dict[str, str]
    """Pairs that cannot be read, and why."""
    names: list[str]
    """Of the others."""
    rows: dict[str, Rows | str]
    """By backbone, or why it failed."""


class Rows(NamedTuple):
    """One backbone's embeddings of a batch."""

    embeddings: Tensor
    """Unit vectors ``[n, D]`` of sources and of reconstructions, which take turns."""
    fresh: dict[bytes, int]
    """Which of them the cache shall keep, by key."""


@torch.no_grad()
def measure(
    backbones: Mapping[str, Backbone],
    pairs: Pairs,
    batch_size: int,
    cache: EmbeddingCache = NO_CACHE,
    is_shared: bool = False,
) -> dict[str, Outcome]:
    """Of each backbone the cosine of every readable pair, and the mean cosine of mismatched ones;
    a file is read once for all of them.

    is_shared: whether all processes measure together.

    Raises:
        NoPairsError: where none is readable.
    """
    tallies = {name: Tally(backbone) for name, backbone in backbones.items()}
    broken: dict[str, str] = {}
    starts = range(0, len(pairs.names), batch_size)
    batches = [range(start, min(start + batch_size, len(pairs.names))) for start in starts]
    reader = Reader(list(backbones.values()), pairs, cache, cache.keys())
    coming = read_ahead(own_batches(batches, is_shared), reader.read_pair)

    def work(places: range) -> list[Embedded]:
        read = dict(zip((pairs.names[i] for i in places), next(coming), strict=True))
        good = {name: pair for name, pair in read.items() if not isinstance(pair, str)}
        pictures = [picture for pair in good.values() for picture in pair]
        rows = {name: tally.embed(pictures) for name, tally in tallies.items()}
        bad = {name: pair for name, pair in read.items() if isinstance(pair, str)}
        return [Embedded(bad, list(good), rows)]

    progress = (f"scoring with {', '.join(backbones)}", "batches")
    for batch in in_order(batches, work, progress, is_shared):
        broken |= batch.broken
        for name, tally in tallies.items():
            tally.add(batch.names, batch.rows[name], cache)
    if len(broken) == len(pairs.names):
        examples = "; ".join(f"{name}: {reason}" for name, reason in list(broken.items())[:3])
        raise NoPairsError(f"no pair could be read, all {len(pairs.names)} failed ({examples})")
    return {name: tally.outcome(broken) for name, tally in tallies.items()}


class Tally:
    """One backbone's cosines so far, and sums of its embeddings.

    The mean over all mismatched pairs needs sums only: ``(Σ_i a_i · Σ_j b_j - Σ_i a_i · b_i) /
    (N (N - 1))``.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.similarities: dict[str, float] = {}
        self.failure: str | None = None
        self._source_sum = self._recon_sum = torch.zeros((), dtype=torch.float64)

    def embed(self, pictures: Sequence[Picture]) -> Rows | str:
        """What the backbone makes of pictures that none of its own failures came before."""
        if self.failure is not None or not pictures:
            return self.failure or Rows(torch.zeros(0, 0), {})
        try:
            return self._embed(pictures)
        except Exception as error:  # out of memory …: the others go on
            return reason_of(error)

    def add(self, names: Sequence[str], rows: Rows | str, cache: EmbeddingCache) -> None:
        """The pairs of a batch, in double precision; where the backbone fails, it is done."""
        if self.failure is not None or not names:
            return
        if isinstance(rows, str):
            self.failure = rows
            return
        cache.put({key: rows.embeddings[place] for key, place in rows.fresh.items()})
        embeddings = rows.embeddings.double()
        a, b = embeddings[0::2], embeddings[1::2]
        cosines = (a * b).sum(dim=-1)
        if not cosines.isfinite().all():
            bad = names[int((~cosines.isfinite()).nonzero()[0])]
            self.failure = reason_of(ValueError(f"the embedding of {bad} is not finite"))
            return
        self.similarities |= dict(zip(names, cosines.tolist(), strict=True))
        self._source_sum = self._source_sum + a.sum(dim=0)
        self._recon_sum = self._recon_sum + b.sum(dim=0)

    def outcome(self, broken: dict[str, str]) -> Outcome:
        if self.failure is not None:
            return self.failure
        n = len(self.similarities)
        mismatched = float((self._source_sum * self._recon_sum).sum())
        mismatched -= sum(self.similarities.values())
        return Measurement(
            similarities=self.similarities,
            shuffled=100 * mismatched / (n * (n - 1)) if n > 1 else None,
            broken=broken,
            provenance=asdict(self.backbone.provenance),
            preprocess=asdict(self.backbone.preprocess),
        )

    def _embed(self, pictures: Sequence[Picture]) -> Rows:
        name, preprocess = self.backbone.name, self.backbone.preprocess
        fresh = [i for i, picture in enumerate(pictures) if name not in picture.embeddings]
        new: dict[int, Tensor] = {}
        if fresh:
            pixels = torch.cat([pictures[i].pixels[preprocess] for i in fresh])
            embedded = self.backbone.embed_pixels(pixels).cpu()
            new = dict(zip(fresh, embedded, strict=True))
        rows = [new[i] if i in new else p.embeddings[name] for i, p in enumerate(pictures)]
        are_kept = (i for i in new if name in pictures[i].keys and new[i].isfinite().all())
        return Rows(torch.stack(rows), {pictures[i].keys[name]: i for i in are_kept})


def reason_of(error: Exception) -> str:
    """As a result says it."""
    return f"{type(error).__name__}: {error}"


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Picture:
    """One side of a pair, as far as backbones still need it."""

    keys: Mapping[str, bytes]
    """By backbone, under which its embedding is kept; none of what is no file."""
    embeddings: Mapping[str, Tensor]
    """Of the backbones that have embedded it before, ``[D]``."""
    pixels: Mapping[Preprocess, Tensor]
    """As the others want it, ``[1 3 crop crop]``."""


@dataclass(frozen=True)
class Reader:
    """Reads pairs for these backbones."""

    backbones: Sequence[Backbone]
    pairs: Pairs
    cache: EmbeddingCache
    known: Collection[bytes]
    """Keys that the cache had at the start: what is added meanwhile is not looked up, so that
    numbers do not depend on what was read first."""

    def read_pair(self, place: int) -> tuple[Picture, Picture] | str:
        """Both sides, or the reason why one cannot be read."""
        try:
            return (
                self._read(self.pairs.sources, place),
                self._read(self.pairs.reconstructions, place),
            )
        except (ImageError, FileNotFoundError) as error:
            return str(error)

    def _read(self, images: Images, place: int) -> Picture:
        if not (self.cache.is_open and isinstance(images, LazyImages)):
            return Picture({}, {}, self._prepared(images[place], self.backbones))
        content = images.content(place)
        keys = {backbone.name: key_of(backbone, content) for backbone in self.backbones}
        found = self.cache.get([key for key in keys.values() if key in self.known])
        embeddings = {name: found[key] for name, key in keys.items() if key in found}
        others = [backbone for backbone in self.backbones if backbone.name not in embeddings]
        if not others:
            return Picture(keys, embeddings, {})
        image = read_image_bytes(content, images.files[place])
        return Picture(keys, embeddings, self._prepared(image, others))

    def _prepared(self, image: Tensor, backbones: Sequence[Backbone]) -> dict[Preprocess, Tensor]:
        different = dict.fromkeys(backbone.preprocess for backbone in backbones)
        return {preprocess: preprocess(image[None]) for preprocess in different}


def read_ahead(
    batches: Sequence[Sequence[int]], read: Callable[[int], Item]
) -> Iterator[list[Item]]:
    """What is read of each batch, in order; the next one is read meanwhile."""
    with ThreadPoolExecutor(NUM_READERS) as readers:
        coming = [readers.submit(read, place) for place in batches[0]] if batches else []
        for following in (*batches[1:], ()):
            current, coming = coming, [readers.submit(read, place) for place in following]
            yield [future.result() for future in current]
