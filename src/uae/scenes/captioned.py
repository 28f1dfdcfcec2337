"""The world as a data set: pictures with captions in parquet, as ``datasets`` reads them.

Half of the captions are exhaustive, half say less: who reads long captions alone forgets how to paint from short
ones, and SD3 was trained on as many of either (arXiv 2403.03206).
"""

from __future__ import annotations

import io
import random
from pathlib import Path

from PIL import Image

from uae.scenes.language import caption, caption_level
from uae.scenes.scene import render, scene_at

PAIRS_PER_SHARD = 5_000
EXHAUSTIVE_SHARE = 0.5


def write_captioned_scenes(folder: Path, num_pairs: int, *, seed: int = 0) -> None:
    """``num_pairs`` scenes of the training split, columns ``image`` (PNG) and ``caption``, in ``train-*.parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, num_pairs, PAIRS_PER_SHARD)):
        rows = [_pair(i, seed) for i in range(first, min(first + PAIRS_PER_SHARD, num_pairs))]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"train-{number:05d}.parquet", row_group_size=500)


def _pair(index: int, seed: int) -> dict:
    scene, png, rng = scene_at("train", index, seed=seed), io.BytesIO(), random.Random(f"captioned {seed} {index}")
    Image.fromarray(render(scene)).save(png, "PNG")
    said = caption(scene, caption_level(EXHAUSTIVE_SHARE, rng), rng)
    return {"image": {"bytes": png.getvalue(), "path": f"{index}.png"}, "caption": said}
