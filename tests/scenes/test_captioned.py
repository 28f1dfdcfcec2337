"""The world as a data set on disk."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from uae.scenes.captioned import write_captioned_scenes
from uae.scenes.language import read_caption
from uae.scenes.scene import render, scene_at


def test_pictures_are_the_scenes_and_captions_of_both_kinds_are_true(tmp_path: Path):
    write_captioned_scenes(tmp_path, 60)
    rows = pq.read_table(tmp_path).to_pylist()
    complete = 0
    for i, row in enumerate(rows):
        scene, mentions = scene_at("train", i), read_caption(row["caption"]).mentions
        assert (np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) == np.asarray(render(scene))).all()
        assert all(any(mention.fits(o) for o in scene.objects) for mention in mentions)
        complete += bool(mentions) and len(mentions) == len(scene.objects) and all(m.is_complete for m in mentions)
    assert len(rows) == 60 and 18 < complete < 42  # half of them
