"""The world as a data set: pictures with captions in parquet, as ``datasets`` reads them.

Two fifths of the captions are exhaustive, of any scene; the others are short, of the simple scenes
that short prompts ask for: one or two objects that are named, or a number of them. Who reads long
captions alone forgets how to paint from short ones, and SD3 was trained on as many of either (arXiv
2403.03206); short captions of crowded scenes, which leave most of the picture to chance, taught
nothing (``docs/log.md``).
"""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

from PIL import Image

from uae.world.language import caption, caption_level
from uae.world.scene import MAX_OBJECTS, Scene, render, scene_at

PAIRS_PER_SHARD = 5_000
EXHAUSTIVE_SHARE = 0.4
SHORT_LEVELS = {"objects": 0.6, "layout": 0.15, "count": 0.25}
"""Weights of short captions that name objects, that say where they are as well, or how many."""


def write_captioned_scenes(folder: Path, num_pairs: int, *, seed: int = 0) -> None:
    """``num_pairs`` scenes of the training split in ``train-*.parquet``.

    The columns are ``image`` (PNG) and ``caption``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, num_pairs, PAIRS_PER_SHARD)):
        stop = min(start + PAIRS_PER_SHARD, num_pairs)
        table = pa.Table.from_pylist([_pair(i, seed) for i in range(start, stop)])
        pq.write_table(table, folder / f"train-{number:05d}.parquet", row_group_size=500)


def captioned_scene(index: int, seed: int) -> tuple[Scene, str]:
    """The ``index``-th scene of the training split and its caption."""
    rng = random.Random(f"captioned {seed} {index}")
    level = caption_level(EXHAUSTIVE_SHARE, rng, SHORT_LEVELS)
    scene = scene_at("train", index, seed=seed, **_scene_limits(level, rng))
    return scene, caption(scene, level, rng)


def _pair(index: int, seed: int) -> dict:
    scene, text = captioned_scene(index, seed)
    png = io.BytesIO()
    Image.fromarray(render(scene)).save(png, "PNG")
    return {"image": {"bytes": png.getvalue(), "path": f"{index}.png"}, "caption": text}


def _scene_limits(level: str, rng: random.Random) -> dict[str, Any]:
    """Of a scene for a caption of this level: none, some shapes, or one or two of them."""
    if level == "exhaustive":
        return {}
    fewest, most = (2, MAX_OBJECTS) if level == "count" else (1, 2)
    return {"num_objects": fewest + int(rng.random() * (most - fewest + 1)), "with_word": False}
