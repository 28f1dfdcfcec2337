"""The world as a data set on disk."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from uae.world.detector import Detection, detect
from uae.world.language import NUMBERS, read_caption
from uae.world.pairs import write_captioned_scenes


def test_exhaustive_captions_say_all_and_short_ones_are_of_simple_scenes(tmp_path: Path):
    write_captioned_scenes(tmp_path, 120)
    rows = pq.read_table(tmp_path).to_pylist()
    counts = {"exhaustive": 0, "named": 0, "counted": 0}
    for row, detection in zip(rows, _detections(rows), strict=True):
        mentions = read_caption(row["caption"]).mentions
        assert all(any(mention.fits(o) for o in detection.objects) for mention in mentions)
        if mentions:
            assert len(mentions) == len(detection.objects)
            is_exhaustive = all(mention.is_complete for mention in mentions)
            assert is_exhaustive or len(mentions) <= 2
            counts["exhaustive" if is_exhaustive else "named"] += 1
        else:
            assert NUMBERS[len(detection.objects)] in row["caption"].split()
            counts["counted"] += 1
    assert len(rows) == 120
    assert 36 <= counts["exhaustive"] <= 60  # 48 expected
    assert 42 <= counts["named"] <= 66  # 54
    assert 8 <= counts["counted"] <= 30  # 18


def _detections(rows: list[dict]) -> list[Detection]:
    pictures = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows]
    return detect(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255)
