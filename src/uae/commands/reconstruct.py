"""``uae reconstruct``: what a model says of images and what it makes of its own words."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image

from uae.autoencode import autoencode
from uae.bench.gallery import write_gallery
from uae.bench.samples import Sample
from uae.config import CaptionSettings, DecodeSettings
from uae.data.images import ImageError, list_images, read_image
from uae.data.training import fit_to
from uae.models.loading import SHIPPED, load_model
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
    captioning: CaptionSettings = field(default_factory=lambda: CaptionSettings(temperature=0.0))
    """How captions are made; greedy unless a temperature is given."""
    decoding: DecodeSettings = field(default_factory=lambda: DecodeSettings(num_steps=20, height=0, width=0))
    """How they are painted; height and width 0: at the size that the model was made for."""
    batch_size: int = 16
    """Images at a time."""
    seed: int = 0
    """Of the noise that painting starts from."""


def main(arguments: list[str]) -> None:
    """``uae reconstruct PATH… [--model MODEL] [--out DIR]``"""
    quiet_libraries()
    reconstruct(tyro.cli(Arguments, args=arguments, prog="uae reconstruct"))


def reconstruct(args: Arguments) -> None:
    """Caption and paint all images of the given paths, in batches."""
    files, num_ignored = list_images(args.paths)
    if num_ignored:
        print(f"{num_ignored} other files ignored")
    model: Any = load_model(args.model)
    decoding = args.decoding
    height, width = (side or model.image_size for side in (decoding.height, decoding.width))
    args = replace(args, decoding=replace(decoding, height=height, width=width))
    if args.model in SHIPPED:
        print(f"note: {PHOTO_NOTE}")
    args.out.mkdir(parents=True, exist_ok=True)
    shown: list[Sample] = []
    for start in range(0, len(files), args.batch_size):
        shown += reconstruct_files(model, files[start : start + args.batch_size], args, start)
    if not shown:
        raise ImageError(f"expected at least one readable image, none of {len(files)} could be read")
    write_gallery(args.out / "report.html", shown, note=PHOTO_NOTE if args.model in SHIPPED else "")
    print(f"{len(shown)} of {len(files)} images: {args.out / 'report.html'}")


def reconstruct_files(model: Any, files: list[Path], args: Arguments, first: int) -> list[Sample]:
    """One batch; unreadable files are named and left out."""
    size = (args.decoding.height, args.decoding.width)
    images, names = [], []
    for file in files:
        try:
            images.append(fit_to(read_image(file), size))
            names.append(file.stem)
        except ImageError as error:
            print(f"left out: {error}", file=sys.stderr)
    if not images:
        return []
    captions, reconstructions = autoencode(model, images, args.captioning, args.decoding, seed=args.seed, step=first)
    for name, text, painted, cut in zip(names, captions.texts, reconstructions.images, captions.truncated, strict=True):
        remark = "  (cut at the cap: raise --captioning.max-new-tokens)" if cut else "" if text else "(empty caption)"
        print(f"{name}: {text}{remark}")
        atomic_write_text(args.out / f"{name}.txt", f"{text}\n")
        save_png(args.out / f"recon_{name}.png", painted)
    return [Sample(*row) for row in zip(images, captions.texts, reconstructions.images, strict=True)]


def save_png(path: Path, image: torch.Tensor) -> None:
    pixels = (image.float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
