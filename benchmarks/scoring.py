"""How fast Unified-Bench scores, beside a plain loop over images, and again from its cache.

    python benchmarks/scoring.py --pairs 100 --threads 2

The plain loop is of the official scorer's shape: for each backbone and pair, both files are opened,
prepared and embedded, one at a time. Ours reads each file once, ahead, in threads, and embeds in
batches. Pictures are scenes of the embedded world at 512 pixels, as JPEG. Backbones: the world's
own (``tiny``), and ``base``, random weights of two of the published classes at the size of ViT-B at
224 pixels.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from uae.bench.unified import BACKBONES
from uae.bench.unified.measure import NO_CACHE, Measurement, Pairs, measure
from uae.bench.unified.pairing import LazyImages
from uae.images.read import read_image
from uae.similarity.backbones import Backbone, load_backbone
from uae.similarity.cache import EmbeddingCache
from uae.similarity.checkpoints import Provenance, library_versions
from uae.similarity.preprocess import CLIP_PREPROCESS
from uae.world.scene import render, scene_at

BATCH, SIZE = 16, 512


def write_pairs(folder: Path, number: int) -> Pairs:
    files = []
    for split in ("train", "test"):
        (folder / split).mkdir()
        for i in range(number):
            picture = Image.fromarray(render(scene_at(split, i))).resize((SIZE, SIZE))
            picture.save(folder / split / f"{i}.jpg", quality=95)
        files.append([folder / split / f"{i}.jpg" for i in range(number)])
    return Pairs([str(i) for i in range(number)], LazyImages(files[0]), LazyImages(files[1]))


def base_backbones() -> dict[str, Backbone]:
    """Random weights of the published classes at the size of ViT-B."""
    torch.manual_seed(0)
    width = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {**width, "intermediate_size": 3072, "patch_size": 16, "image_size": 224}
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    models = {
        "clip": CLIPModel(CLIPConfig(vision_config=vision, text_config=text)),
        "dinov2": Dinov2Model(Dinov2Config(**width, patch_size=16, image_size=224)),
    }
    return {
        name: Backbone(
            name,
            model,
            CLIP_PREPROCESS,
            Provenance(name, "random", "seed 0", "float32", library_versions()),
        )
        for name, model in models.items()
    }


@torch.no_grad()
def plain_loop(backbones: Mapping[str, Backbone], pairs: Pairs) -> dict[tuple[str, str], float]:
    sources, recons = pairs.sources.files, pairs.reconstructions.files  # type: ignore[union-attr]
    cosines = {}
    for name, backbone in backbones.items():
        for place, source, recon in zip(pairs.names, sources, recons, strict=True):
            a, b = backbone.embed(read_image(source)[None]), backbone.embed(read_image(recon)[None])
            cosines[name, place] = float((a.double() * b.double()).sum())
    return cosines


def ours(
    backbones: Mapping[str, Backbone], pairs: Pairs, cache: EmbeddingCache = NO_CACHE
) -> dict[tuple[str, str], float]:
    measured = measure(backbones, pairs, BATCH, cache)
    return {
        (name, place): cosine
        for name, one in measured.items()
        if isinstance(one, Measurement)
        for place, cosine in one.similarities.items()
    }


def compare(backbones: Mapping[str, Backbone], pairs: Pairs, file: Path, repeats: int) -> str:
    """Images a second, medians of repetitions that take turns."""
    times: dict[str, list[float]] = {}
    expected: dict[tuple[str, str], float] = {}
    largest = 0.0
    for i in range(repeats):
        with closing(EmbeddingCache(file.with_name(f"{file.name} {i}"))) as cache:
            for name, work in (
                ("plain", lambda: plain_loop(backbones, pairs)),
                ("ours", lambda: ours(backbones, pairs)),
                ("kept", lambda c=cache: ours(backbones, pairs, c)),
                ("again", lambda c=cache: ours(backbones, pairs, c)),
            ):
                start = time.perf_counter()
                found = work()
                times.setdefault(name, []).append(time.perf_counter() - start)
                expected = expected or found
                assert found.keys() == expected.keys()
                largest = max(largest, *(abs(found[key] - expected[key]) for key in found))
    seconds = {name: median(each) for name, each in times.items()}
    speed = {name: 2 * len(pairs.names) / each for name, each in seconds.items()}
    return (
        f"images/s under {len(backbones)} backbones: {speed['plain']:.1f} plain, "
        f"{speed['ours']:.1f} ours ({seconds['plain'] / seconds['ours']:.2f} times), "
        f"{speed['kept']:.1f} keeping them, {speed['again']:.0f} from the cache "
        f"({seconds['plain'] / seconds['again']:.0f} times); largest difference {largest:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        pairs = write_pairs(Path(folder), args.pairs)
        tiny = {name: load_backbone(name, "tiny") for name in BACKBONES}
        for title, backbones in (("tiny", tiny), ("base", base_backbones())):
            print(f"{title}: {compare(backbones, pairs, Path(folder) / title, args.repeats)}")
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
