"""The world as a data set: pictures with exhaustive captions in parquet, as ``datasets`` reads them."""

from __future__ import annotations

import io
import random
from pathlib import Path

from PIL import Image

from uae.scenes.language import caption
from uae.scenes.scene import render, scene_at

PAIRS_PER_SHARD = 5_000


def write_captioned_scenes(folder: Path, num_pairs: int, *, seed: int = 0) -> None:
    """``num_pairs`` scenes of the training split, columns ``image`` (PNG) and ``caption``, in ``train-*.parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, num_pairs, PAIRS_PER_SHARD)):
        rows = [_pair(i, seed) for i in range(first, min(first + PAIRS_PER_SHARD, num_pairs))]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"train-{number:05d}.parquet", row_group_size=500)


def _pair(index: int, seed: int) -> dict:
    scene, png = scene_at("train", index, seed=seed), io.BytesIO()
    Image.fromarray(render(scene)).save(png, "PNG")
    said = caption(scene, "exhaustive", random.Random(f"captioned {seed} {index}"))
    return {"image": {"bytes": png.getvalue(), "path": f"{index}.png"}, "caption": said}
