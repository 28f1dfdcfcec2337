"""``uae reconstruct``: what a model says of images and what it makes of its own words."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from uae.autoencode import autoencode
from uae.config import CaptionOptions, CaptionSettings, DecodeOptions, DecodeSettings, changed
from uae.data.folders import PREFIX, list_images, note_outputs, noted_outputs, output_names
from uae.images.read import ImageError, read_image
from uae.images.resize import fit_to
from uae.images.write import save_png
from uae.models.base import UnifiedModel, check_settings
from uae.models.load import SHIPPED, load_model
from uae.report.gallery import write_gallery
from uae.report.samples import Sample
from uae.utils.files import atomic_write_text
from uae.utils.messages import printable
from uae.utils.outputs import check_out_folder
from uae.utils.progress import track
from uae.utils.quiet import quiet_libraries

PHOTO_NOTE = (
    "the tiny model has only ever seen 48x48 scenes of simple shapes: what it makes of "
    "photographs shows that the path works, not what a real model can do (--model "
    "ENCODER+DECODER)"
)


@dataclass(frozen=True)
class Arguments:
    """Caption images and paint the captions: source | caption | reconstruction."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files or folders, of any size and mode."""
    model: str = "tiny"
    """`tiny`, a folder that uae wrote, Janus-Pro, or ENCODER+DECODER by hub id or folder."""
    out: Path = Path("reconstructions")
    """Folder for one recon_NAME.png and NAME.txt per image, in their subfolders, and
    report.html."""
    captioning: CaptionOptions = field(default_factory=CaptionOptions)
    """How captions are made; by default as the model's uae.json says, else in detail and greedy."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    """How they are painted; by default as the model's uae.json says, else as its family was
    published."""
    batch_size: int = 16
    """Images at a time; what is made of each does not depend on it."""
    seed: int = 0
    """Of the noise or the draws that painting starts from."""


@dataclass(frozen=True)
class Entry:
    """An image of the listing."""

    file: Path
    name: Path
    """Its path inside the given folder."""
    output: Path
    """What its outputs are called, path inside the output folder included."""

    @property
    def painting(self) -> Path:
        """Path of its reconstruction inside the output folder."""
        return self.output.with_name(f"{PREFIX}{self.output.name}.png")

    @property
    def caption(self) -> Path:
        """Path of its caption inside the output folder."""
        return self.output.with_name(f"{self.output.name}.txt")


@dataclass(frozen=True)
class Reconstructed:
    """What was made of a folder, and how."""

    captioning: CaptionSettings
    decoding: DecodeSettings
    samples: dict[Path, Sample] = field(default_factory=dict)
    """By the image's path inside the given folder."""
    pairs: dict[Path, tuple[Path, Path]] = field(default_factory=dict)
    """The image file and its reconstruction, by the same."""
    left_out: dict[Path, str] = field(default_factory=dict)
    """Why the image could not be read, by the same."""


def main(arguments: list[str]) -> None:
    """``uae reconstruct PATH… [--model MODEL] [--out DIR]``"""
    quiet_libraries()
    reconstruct(tyro.cli(Arguments, args=arguments, prog="uae reconstruct"))


def reconstruct(args: Arguments) -> Reconstructed:
    """Caption and paint all images of the given paths, in batches. What is finished is reported,
    whatever comes then.

    Raises:
        ValueError: when no image can be read, or results would take the place of an image.
    """
    entries = find_images(args)
    model: Any = load_model(args.model)
    if args.model in SHIPPED:
        print(f"note: {PHOTO_NOTE}")
    made = Reconstructed(
        changed(model.captioning, args.captioning), changed(model.decoding, args.decoding)
    )
    check_settings(model, made.captioning, made.decoding)
    note_outputs(args.out, [path for entry in entries for path in (entry.painting, entry.caption)])
    try:
        for start in track(range(0, len(entries), args.batch_size), "reconstructing", "batches"):
            reconstruct_batch(model, entries[start : start + args.batch_size], made, args)
    finally:
        if made.samples:
            write_report(made, args)
            print(f"{len(made.samples)} of {len(entries)} images: {args.out / 'report.html'}")
    if not made.samples:
        raise ImageError(
            f"expected at least one readable image, none of {len(entries)} could be read"
        )
    return made


def find_images(args: Arguments) -> list[Entry]:
    """All images, each with outputs of its own; what is passed over is told."""
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    check_out_folder(args.out)
    listing = list_images(args.paths, args.out)
    for remark in listing.remarks():
        print(remark, file=sys.stderr)
    outputs = output_names(listing.names)
    entries = [Entry(*row) for row in zip(listing.files, listing.names, outputs, strict=True)]
    check_free(entries, args.out)
    return entries


def check_free(entries: list[Entry], out: Path) -> None:
    """Refuse to write over what lies among the images and is not ours."""
    folders = {os.path.dirname(os.path.realpath(entry.file)) for entry in entries}
    ours = noted_outputs(out)
    for target in (target for entry in entries for target in (entry.painting, entry.caption)):
        path = os.path.join(os.path.realpath((out / target).parent), target.name)
        if os.path.dirname(path) in folders and os.path.lexists(path) and path not in ours:
            raise ValueError(
                f"--out {out}: would write over {printable(path)}; give another folder"
            )


def reconstruct_batch(
    model: UnifiedModel, entries: list[Entry], made: Reconstructed, args: Arguments
) -> None:
    """Add what is made of some images to ``made`` and the output folder; unreadable files are named
    and left out.

    Draws are keyed by the file's content, so nothing else that is there changes what is made of it.
    """
    size = (made.decoding.height, made.decoding.width)
    images: dict[Entry, torch.Tensor] = {}
    keys: list[int] = []
    for entry in entries:
        try:
            image, key = fit_to(read_image(entry.file), size), content_key(entry.file)
        except (ImageError, OSError) as error:
            print(f"left out: {error}", file=sys.stderr)
            made.left_out[entry.name] = str(error)
            continue
        images[entry] = image
        keys.append(key)
    if not images:
        return
    captions, painted = autoencode(
        model, list(images.values()), made.captioning, made.decoding, seed=args.seed, keys=keys
    )
    if share := painted.metrics.get("image/text_cut_frac"):
        print(
            (
                f"{share:.0%} of {len(images)} captions are longer than the decoder reads: painted "
                "without their ends"
            ),
            file=sys.stderr,
        )
    for row in zip(images, captions.texts, painted.images, captions.truncated, strict=True):
        entry, text, image, cut = row
        remark = (
            "  (cut at the cap: raise --captioning.max-new-tokens)"
            if cut
            else ""
            if text
            else "(empty caption)"
        )
        print(f"{printable(entry.output)}: {text}{remark}")
        atomic_write_text(args.out / entry.caption, f"{text}\n")
        save_png(args.out / entry.painting, image)
        made.samples[entry.name] = Sample(images[entry], text, image.cpu())
        made.pairs[entry.name] = (entry.file, args.out / entry.painting)


def content_key(file: Path) -> int:
    """Of the image, wherever it stands and whatever it is called: 40 bits of the hash of its
    bytes."""
    with open(file, "rb") as opened:
        return int.from_bytes(hashlib.file_digest(opened, "sha256").digest()[:5])


def write_report(made: Reconstructed, args: Arguments) -> None:
    note = PHOTO_NOTE if args.model in SHIPPED else ""
    write_gallery(
        args.out / "report.html",
        {printable(name): sample for name, sample in made.samples.items()},
        note,
    )
