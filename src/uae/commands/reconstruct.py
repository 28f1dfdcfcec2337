"""``uae reconstruct``: what a model says of images and what it makes of its own words."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image

from uae.autoencode import autoencode
from uae.bench.gallery import write_gallery
from uae.bench.samples import Sample
from uae.config import CaptionOptions, CaptionSettings, DecodeOptions, DecodeSettings, changed
from uae.data.folders import list_images
from uae.data.images import ImageError, read_image
from uae.data.training import fit_to
from uae.models.base import UnifiedModel
from uae.models.loading import SHIPPED, load_model, published_dtype
from uae.utils.checkpoint import atomic_write_text
from uae.utils.quiet import quiet_libraries

PHOTO_NOTE = (
    "the tiny model has only ever seen 48x48 scenes of simple shapes: what it makes of photographs shows that the "
    "path works, not what a real model can do (--model ENCODER+DECODER)"
)


@dataclass(frozen=True)
class Arguments:
    """Caption images and paint the captions: source | caption | reconstruction."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files or folders, of any size and mode."""
    model: str = "tiny"
    """`tiny`, a folder that uae wrote, Janus-Pro, or ENCODER+DECODER by hub id or folder."""
    out: Path = Path("reconstructions")
    """Folder for one recon_NAME.png and NAME.txt per image and report.html."""
    captioning: CaptionOptions = field(default_factory=CaptionOptions)
    """How captions are made; by default as the model's uae.json says, else in detail and greedy."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    """How they are painted; by default as the model's uae.json says, else as its family was published."""
    batch_size: int = 16
    """Images at a time."""
    seed: int = 0
    """Of the noise or the draws that painting starts from."""


@dataclass(frozen=True)
class Reconstructed:
    """What was made of a folder, and how."""

    captioning: CaptionSettings
    decoding: DecodeSettings
    samples: list[Sample]


def main(arguments: list[str]) -> None:
    """``uae reconstruct PATH… [--model MODEL] [--out DIR]``"""
    quiet_libraries()
    reconstruct(tyro.cli(Arguments, args=arguments, prog="uae reconstruct"))


def reconstruct(args: Arguments) -> Reconstructed:
    """Caption and paint all images of the given paths, in batches."""
    listing = list_images(args.paths)
    for remark in listing.remarks():
        print(remark)
    files = listing.files
    model: Any = load_model(args.model, published_dtype(args.model))
    if args.model in SHIPPED:
        print(f"note: {PHOTO_NOTE}")
    captioning, decoding = changed(model.captioning, args.captioning), changed(model.decoding, args.decoding)
    args.out.mkdir(parents=True, exist_ok=True)
    samples: list[Sample] = []
    for start in range(0, len(files), args.batch_size):
        batch = files[start : start + args.batch_size]
        samples += reconstruct_files(model, batch, captioning, decoding, args.out, seed=args.seed, step=start)
    if not samples:
        raise ImageError(f"expected at least one readable image, none of {len(files)} could be read")
    write_gallery(args.out / "report.html", samples, note=PHOTO_NOTE if args.model in SHIPPED else "")
    print(f"{len(samples)} of {len(files)} images: {args.out / 'report.html'}")
    return Reconstructed(captioning, decoding, samples)


def reconstruct_files(
    model: UnifiedModel,
    files: list[Path],
    captioning: CaptionSettings,
    decoding: DecodeSettings,
    out: Path,
    *,
    seed: int,
    step: int,
) -> list[Sample]:
    """One batch; unreadable files are named and left out."""
    size = (decoding.height, decoding.width)
    images, names = [], []
    for file in files:
        try:
            images.append(fit_to(read_image(file), size))
            names.append(file.stem)
        except ImageError as error:
            print(f"left out: {error}", file=sys.stderr)
    if not images:
        return []
    captions, reconstructions = autoencode(model, images, captioning, decoding, seed=seed, step=step)
    for name, text, painted, cut in zip(names, captions.texts, reconstructions.images, captions.truncated, strict=True):
        remark = "  (cut at the cap: raise --captioning.max-new-tokens)" if cut else "" if text else "(empty caption)"
        print(f"{name}: {text}{remark}")
        atomic_write_text(out / f"{name}.txt", f"{text}\n")
        save_png(out / f"recon_{name}.png", painted)
    return [Sample(*row) for row in zip(images, captions.texts, reconstructions.images, strict=True)]


def save_png(path: Path, image: torch.Tensor) -> None:
    pixels = (image.float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
