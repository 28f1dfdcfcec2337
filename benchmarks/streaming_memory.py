"""Peak memory of streaming image-caption pairs: it must not grow with the number of rows read.

    python benchmarks/streaming_memory.py   # 10k, 100k and 1M rows, through the pool, decoded
    python benchmarks/streaming_memory.py --rows 10000 100000

A parquet set of as many rows is written to a temporary folder: captions of 250 words, and one noisy
64x64 PNG repeated so that the files stay small; each row is read and decoded all the same.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from uae.data.buckets import CaptionBatches

ROW_GROUP, ROWS_PER_SHARD, BATCH_SIZE, SIDE = 1_000, 50_000, 100, 64
CAPTION = "word " * 250


def main() -> None:
    """Print a table and JSON of rows read, peak memory and rows per second."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--pool-size", type=int, default=1_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        writer = multiprocessing.get_context("spawn").Process(
            target=write_set, args=(Path(folder), max(args.rows))
        )
        writer.start()  # a process of its own: what writing takes is not counted
        writer.join()
        data = CaptionBatches(folder, [(SIDE, SIDE)], BATCH_SIZE, pool_size=args.pool_size)
        results = [measure(data, count) for count in sorted(args.rows)]
    print(f"{'rows':>10} {'peak MB':>9} {'rows/s':>8}")
    for result in results:
        print(f"{result['rows']:>10,} {result['peak_mb']:>9.1f} {result['rows_per_sec']:>8.0f}")
    print(json.dumps({"pool_size": args.pool_size, "results": results}))


def write_set(folder: Path, num_rows: int) -> None:
    """Shards of ``ROWS_PER_SHARD`` rows, the last one shorter."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    for first in range(0, num_rows, ROWS_PER_SHARD):
        count = min(ROWS_PER_SHARD, num_rows - first)
        captions = [f"{first + i} {CAPTION}" for i in range(ROW_GROUP)]
        group = pa.table({"image": [file.getvalue()] * ROW_GROUP, "caption": captions})
        with pq.ParquetWriter(folder / f"{first:08}.parquet", group.schema) as writer:
            for start in range(0, count, ROW_GROUP):
                writer.write_table(group.slice(0, min(ROW_GROUP, count - start)))


def measure(data: CaptionBatches, num_rows: int) -> dict[str, float]:
    """Read on until ``num_rows`` have been drawn; peak memory of the process until then."""
    began, before = time.monotonic(), data.num_batches
    while data.num_batches * BATCH_SIZE < num_rows:
        data.next_batch()
    read = (data.num_batches - before) * BATCH_SIZE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024**2 if sys.platform == "darwin" else 1024
    )
    return {
        "rows": num_rows,
        "peak_mb": peak,
        "rows_per_sec": read / max(time.monotonic() - began, 1e-9),
    }


if __name__ == "__main__":
    main()
