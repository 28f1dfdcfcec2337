"""Batches of images of one size from a stream of any sizes: aspect buckets, and a pool of rows that
shuffles.

A bucket is a (height, width) of about the target's area; each image goes to the one of nearest
aspect, |log(h/w) - log(h'/w')|, resized to cover it and cropped (NovelAI's aspect ratio bucketing,
2022). The pool holds ``pool_size`` rows as they are stored, undecoded. Once it is full, a batch is
drawn from one bucket, chosen in proportion to its rows among those that fill a batch, keyed by
(seed, batch number). The next pass begins when what is left of this one fills no batch, and takes
that along. So stream position, pool and batch number are the whole state, and every row is drawn
as often as it was read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from uae.data.captions import CaptionStream, StoredPair, data_files, find_shards
from uae.data.inventory import Inventory
from uae.images.read import ImageError, read_image_bytes
from uae.images.resize import fit_to
from uae.utils.checkpoint import check_same_config
from uae.utils.seed import make_generator

MAX_ASPECT = 2.0
Bucket = tuple[int, int]


@dataclass(frozen=True)
class CaptionedImage:
    """A pair to train on."""

    image: Float[Tensor, "3 h w"]
    """In [0, 1], of its bucket's size."""
    caption: str
    """As it is stored."""
    digest: str
    """Of image file, size and caption."""


class Pooled(NamedTuple):
    """A row that waits to be drawn."""

    row: StoredPair
    name: str
    """Its file, and where it is in there."""


def aspect_buckets(resolution: int, divisor: int, largest: int) -> tuple[Bucket, ...]:
    """Sizes in multiples of ``divisor``, up to ``largest``, of about ``resolution``² pixels; at
    most 2:1 or 1:2."""
    if resolution % divisor or not 0 < resolution <= largest:
        raise ValueError(
            f"expected a resolution in multiples of {divisor} up to {largest}, got {resolution}"
        )
    buckets: set[Bucket] = set()
    for height in range(divisor, largest + 1, divisor):
        width = max(1, round(resolution**2 / height / divisor)) * divisor
        if width <= largest and max(height / width, width / height) <= MAX_ASPECT:
            buckets |= {(height, width), (width, height)}
    return tuple(sorted(buckets))


def nearest_bucket(size: tuple[int, int], buckets: Sequence[Bucket]) -> int:
    """The index of the bucket whose aspect is nearest."""
    aspect = math.log(size[0] / size[1])
    return min(
        range(len(buckets)), key=lambda i: abs(math.log(buckets[i][0] / buckets[i][1]) - aspect)
    )


class CaptionBatches:
    """Endless batches of one size each. The first ``num_held_out`` pairs of the first pass are kept
    out of all."""

    def __init__(
        self,
        paths: Sequence[str | Path] | str | Path,
        buckets: Sequence[Bucket],
        batch_size: int,
        *,
        pool_size: int,
        num_held_out: int = 0,
        seed: int = 0,
    ) -> None:
        min_pool = len(buckets) * (batch_size - 1) + 1  # then some bucket fills a batch
        if pool_size < min_pool:
            raise ValueError(
                f"expected a pool of at least {min_pool} rows for batches of {batch_size}, each of "
                f"one of {len(buckets)} sizes, got {pool_size}; make it larger or batches "
                "smaller"
            )
        self.buckets, self.batch_size = tuple(buckets), batch_size
        self.pool_size, self.seed = pool_size, seed
        self.files = data_files(paths)
        shards = find_shards(paths)
        first_pass = CaptionStream(shards, seed)
        self.held_out, self._held_out_images = self._hold_out(first_pass, num_held_out)
        self.stream = CaptionStream(shards, seed)
        self.num_batches = 0
        self._pool: list[list[Pooled]] = [[] for _ in buckets]
        self._is_draining = False  # the stream is between two passes

    def next_batch(self) -> list[CaptionedImage]:
        """``batch_size`` pairs of one bucket."""
        generator = make_generator(self.seed, self.num_batches, "batch")
        self.num_batches += 1
        while True:
            self._fill()
            samples = self._draw(generator)
            if samples is not None:
                return samples

    def _fill(self) -> None:
        num_rows = sum(map(len, self._pool))
        while num_rows < self.pool_size and not (self._is_draining and self._fills_a_batch()):
            row = self.stream.read()
            self._is_draining = row is None
            if row is not None and _digest(row.image) not in self._held_out_images:
                bucket = nearest_bucket(row.size, self.buckets)
                self._pool[bucket].append(Pooled(row, self.stream.name))
                num_rows += 1

    def _fills_a_batch(self) -> bool:
        return any(len(rows) >= self.batch_size for rows in self._pool)

    def _draw(self, generator: torch.Generator) -> list[CaptionedImage] | None:
        """A batch, taken out of the pool; None if too many of the bucket's rows turned out to be
        corrupt."""
        weights = torch.tensor(
            [float(len(rows) if len(rows) >= self.batch_size else 0) for rows in self._pool]
        )
        bucket = int(torch.multinomial(weights, 1, generator=generator))
        rows, samples, corrupt = self._pool[bucket], {}, set()
        for index in torch.randperm(len(rows), generator=generator).tolist():
            row, name = rows[index]
            try:
                samples[index] = captioned_image(row, name, self.buckets[bucket])
            except ImageError as error:
                self.stream.skip(error)
                corrupt.add(index)
            if len(samples) == self.batch_size:
                break
        is_full = len(samples) == self.batch_size
        spent = corrupt | samples.keys() if is_full else corrupt
        self._pool[bucket] = [each for index, each in enumerate(rows) if index not in spent]
        return list(samples.values()) if is_full else None

    def _hold_out(
        self, stream: CaptionStream, number: int
    ) -> tuple[list[CaptionedImage], set[str]]:
        """The first pairs that can be read, and digests of their images; at least one other must
        follow."""
        samples: list[CaptionedImage] = []
        images: set[str] = set()
        while (row := stream.read()) is not None:
            try:
                sample = captioned_image(
                    row, stream.name, self.buckets[nearest_bucket(row.size, self.buckets)]
                )
            except ImageError as error:
                stream.skip(error)
                continue
            image = _digest(row.image)
            if len(samples) < number:
                samples.append(sample)
                images.add(image)
            elif image not in images:
                return samples, images
        raise ValueError(
            f"expected pairs to train on beside {number} held out, found {len(samples)} in all; "
            "give more data or hold out fewer"
        )

    def state_dict(self) -> dict[str, Any]:
        """Stream position, pool and counters, as plain data and tensors."""
        pooled = [each for bucket in self._pool for each in bucket]
        rows = [row for row, _ in pooled]
        content = bytearray().join(row.image for row in rows)
        no_images = torch.empty(0, dtype=torch.uint8)
        images = torch.frombuffer(content, dtype=torch.uint8) if rows else no_images
        return {
            "settings": self._settings(),
            "files": self.files.pack(),
            "stream": self.stream.state_dict(),
            "num_batches": self.num_batches,
            "is_draining": self._is_draining,
            "pool_buckets": [len(bucket) for bucket in self._pool],
            "pool_images": images,
            "pool_lengths": [len(row.image) for row in rows],
            "pool_captions": [row.caption for row in rows],
            "pool_sizes": [list(row.size) for row in rows],
            "pool_names": [name for _, name in pooled],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken; a ValueError if that was with other files or
        settings."""
        self._check_same(state)
        self.stream.load_state_dict(state["stream"])
        self.num_batches, self._is_draining = state["num_batches"], state["is_draining"]
        images = (
            part.numpy().tobytes() for part in state["pool_images"].split(state["pool_lengths"])
        )
        sizes = ((height, width) for height, width in state["pool_sizes"])
        rows = map(StoredPair, images, state["pool_captions"], sizes)
        nameless = ["a pair's image"] * len(state["pool_lengths"])
        names = state.get("pool_names") or nameless  # older checkpoints have none
        pooled = map(Pooled, rows, names)
        self._pool = [[next(pooled) for _ in range(number)] for number in state["pool_buckets"]]

    def _check_same(self, state: dict[str, Any]) -> None:
        """Older checkpoints have the shards' names among the settings instead of an inventory."""
        if "files" in state:
            self.files.check(Inventory.unpack(state["files"]), "shards and images")
            check_same_config(state["settings"], self._settings())
        else:
            shards = ["/".join(shard.parts[-2:]) for shard in self.stream.shards]
            check_same_config(state["settings"], {"shards": shards, **self._settings()})

    def _settings(self) -> dict[str, Any]:
        return {
            "buckets": [list(bucket) for bucket in self.buckets],
            "batch_size": self.batch_size,
            "pool_size": self.pool_size,
            "num_held_out": len(self.held_out),
            "seed": self.seed,
        }


def captioned_image(row: StoredPair, name: str, bucket: Bucket) -> CaptionedImage:
    """Decode a row; an ImageError by its name if it is corrupt."""
    image = fit_to(read_image_bytes(row.image, name), bucket)
    return CaptionedImage(
        image, row.caption, _digest(row.image, str(bucket).encode(), row.caption.encode())
    )


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
