"""The cosine of each pair of images under some backbones, batch by batch.

Files are read and prepared by several threads, once for all backbones, one batch ahead of the one
that is scored, so memory does not grow with their number. What a cache holds is neither decoded nor
embedded again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from uae.bench.unified.pairing import LazyImages
from uae.images.read import ImageError, read_image_bytes
from uae.similarity.backbones import Backbone
from uae.similarity.cache import EmbeddingCache, key_of
from uae.similarity.preprocess import Preprocess
from uae.utils.progress import track

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


Outcome = Measurement | Exception
"""Of a backbone: what it answered, or why it failed."""


@torch.no_grad()
def measure(
    backbones: Mapping[str, Backbone],
    pairs: Pairs,
    batch_size: int,
    cache: EmbeddingCache = NO_CACHE,
) -> dict[str, Outcome]:
    """Of each backbone the cosine of every readable pair, and the mean cosine of mismatched ones;
    a file is read once for all of them.

    Raises:
        NoPairsError: where none is readable.
    """
    tallies = {name: Tally(backbone) for name, backbone in backbones.items()}
    broken: dict[str, str] = {}
    starts = range(0, len(pairs.names), batch_size)
    batches = [range(start, min(start + batch_size, len(pairs.names))) for start in starts]
    reader = Reader(list(backbones.values()), pairs, cache)
    coming = read_ahead(batches, reader.read_pair)
    for places in track(batches, f"scoring with {', '.join(backbones)}", "batches"):
        batch: dict[str, tuple[Picture, Picture]] = {}
        for name, pair in zip((pairs.names[i] for i in places), next(coming), strict=True):
            if isinstance(pair, str):
                broken[name] = pair
            else:
                batch[name] = pair
        for tally in tallies.values():
            tally.add(batch, cache)
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
        self.failure: Exception | None = None
        self._source_sum = self._recon_sum = torch.zeros((), dtype=torch.float64)

    def add(self, batch: Mapping[str, tuple[Picture, Picture]], cache: EmbeddingCache) -> None:
        """The pairs of a batch by name; where the backbone fails, it is done."""
        if self.failure is not None or not batch:
            return
        try:
            a, b = self._embed([picture for pair in batch.values() for picture in pair], cache)
        except Exception as error:  # out of memory …: the others go on
            self.failure = error
            return
        cosines = (a * b).sum(dim=-1)
        if not cosines.isfinite().all():
            bad = list(batch)[int((~cosines.isfinite()).nonzero()[0])]
            self.failure = ValueError(f"the embedding of {bad} is not finite")
            return
        self.similarities |= dict(zip(batch, cosines.tolist(), strict=True))
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

    def _embed(self, pictures: Sequence[Picture], cache: EmbeddingCache) -> tuple[Tensor, Tensor]:
        """Unit embeddings ``[n, D]`` of sources and of reconstructions, which take turns, in double
        precision."""
        name, preprocess = self.backbone.name, self.backbone.preprocess
        fresh = [i for i, picture in enumerate(pictures) if name not in picture.embeddings]
        new: dict[int, Tensor] = {}
        if fresh:
            pixels = torch.cat([pictures[i].pixels[preprocess] for i in fresh])
            embedded = self.backbone.embed_pixels(pixels).cpu()
            new = dict(zip(fresh, embedded, strict=True))
        cache.put(
            {
                pictures[i].keys[name]: row
                for i, row in new.items()
                if name in pictures[i].keys and row.isfinite().all()
            }
        )
        rows = [new[i] if i in new else p.embeddings[name] for i, p in enumerate(pictures)]
        embeddings = torch.stack(rows).double()
        return embeddings[0::2], embeddings[1::2]


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
        found = self.cache.get(list(keys.values()))
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
