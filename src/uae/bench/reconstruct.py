"""Images, captions and reconstructions in files: what a model says of images and what it makes of
its own words.

    OUT/NAME.txt          the caption
    OUT/recon_NAME.png    the reconstruction, in the subfolder of its source

Draws are keyed by the content of the source, so nothing else that is there changes what is made of
it. Where a record is kept, in ``OUT/.uae_bench``, a source is not painted again as long as it, its
caption and its reconstruction are what they were.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

from uae.autoencode import autoencode
from uae.bench.api import Answers
from uae.bench.loop.api import Caption, Loop, Seen
from uae.bench.loop.halves import say_cut
from uae.bench.provenance import provenance
from uae.config import CaptionOptions, CaptionSettings, DecodeOptions, DecodeSettings, changed
from uae.data.folders import PREFIX, list_images, noted_outputs, output_names
from uae.images.read import ImageError, read_image
from uae.images.resize import fit_to
from uae.images.write import save_png
from uae.models.base import UnifiedModel, check_settings
from uae.types import RoundTrip
from uae.utils.files import atomic_write_text, sha256_of
from uae.utils.messages import printable
from uae.utils.outputs import check_out_folder
from uae.utils.processes import is_main

RECORD, JOURNAL = ".uae_bench", "answered.jsonl"


@dataclass(frozen=True)
class Photo:
    """An image of the listing."""

    file: Path
    name: Path
    """Its path inside the given folder."""
    output: Path
    """What its outputs are called, path inside the output folder included."""

    @property
    def reconstruction(self) -> Path:
        """Path of its reconstruction inside the output folder."""
        return self.output.with_name(f"{PREFIX}{self.output.name}.png")

    @property
    def caption(self) -> Path:
        """Path of its caption inside the output folder."""
        return self.output.with_name(f"{self.output.name}.txt")


@dataclass(frozen=True)
class ReconstructImages:
    """Caption images and paint the captions: source | caption | reconstruction."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files or folders, of any size and mode."""
    model: str = "tiny"
    """`tiny`, `tiny-ar`, `tiny-early`, a folder that uae wrote, Janus-Pro, or ENCODER+DECODER
    by hub id or folder; or two, as 'CAPTIONER -> PAINTER', each a model, an endpoint's
    (URL#MODEL), or captions in a .json or .jsonl."""
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
    keeps_record: Annotated[bool, tyro.conf.Suppress] = False
    """Go on in a folder where it was stopped, with the settings that it was begun with."""

    progress = ("reconstructing", "batches")

    @property
    def record(self) -> Path | None:
        return self.out / RECORD / "settings.json" if self.keeps_record else None

    @property
    def journal(self) -> Path | None:
        return self.out / RECORD / JOURNAL if self.keeps_record else None

    def items(self) -> list[Photo]:
        """All images, each with outputs of its own."""
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")
        check_out_folder(self.out)
        listing = list_images(self.paths, self.out)
        for remark in listing.remarks() if is_main() else ():
            print(remark, file=sys.stderr)
        outputs = output_names(listing.names)
        photos = [Photo(*row) for row in zip(listing.files, listing.names, outputs, strict=True)]
        self._check_free(photos)
        return photos

    def settings(self, model: UnifiedModel | Loop, items: Sequence[Photo]) -> dict[str, Any]:
        captioning, decoding = self._settings_of(model)
        check_settings(model, captioning, decoding)
        return {
            "model": self._identity_of(model) if self.keeps_record else self.model,
            "captioning": vars(captioning),
            "decoding": vars(decoding),
            "seed": self.seed,
        }

    def outputs(self, item: Photo) -> list[Path]:
        return [item.reconstruction, item.caption]

    def is_answered(self, item: Photo) -> bool:
        return self.keeps_record and self._recorded.get(str(item.output), []) == self._digests(item)

    def prepare(self) -> None:
        """Nothing: images have nothing in common."""

    def answer(
        self, model: UnifiedModel | Loop, items: Sequence[Photo]
    ) -> Iterator[tuple[Photo, str | None]]:
        captioning, decoding = self._settings_of(model)
        seen: dict[Photo, Seen] = {}
        for photo in items:
            try:
                image = fit_to(read_image(photo.file), (decoding.height, decoding.width))
                seen[photo] = Seen(photo.file, photo.name, image, content_key(photo.file))
            except (ImageError, OSError) as error:
                print(f"left out: {error}", file=sys.stderr)
                yield photo, str(error)
        if not seen:
            return
        made_by = model.reconstruct if isinstance(model, Loop) else partial(reconstruct, model)
        photos = list(seen)
        for place, made in made_by(list(seen.values()), captioning, decoding, self.seed):
            photo = photos[place]
            if isinstance(made, str):
                print(f"left out: {printable(photo.name)}: {made}", file=sys.stderr)
                yield photo, made
            else:
                self._write(photo, *made)
                yield photo, None

    def line(self, item: Photo) -> dict[str, Any] | None:
        return {str(item.output): self._digests(item)} if self.keeps_record else None

    def round_trips(self, answers: Answers[Photo]) -> dict[str, RoundTrip]:
        """Read from the files, the sources as the model saw them."""
        decoding = answers.settings["decoding"]
        size = (decoding["height"], decoding["width"])
        return {
            printable(photo.name): RoundTrip(
                fit_to(read_image(photo.file), size),
                _read_line(self.out / photo.caption),
                read_image(self.out / photo.reconstruction),
            )
            for photo in answers.in_order()
        }

    def _identity_of(self, model: UnifiedModel | Loop) -> dict[str, Any]:
        return model.provenance if isinstance(model, Loop) else provenance(self.model, model)

    def _settings_of(self, model: UnifiedModel | Loop) -> tuple[CaptionSettings, DecodeSettings]:
        return changed(model.captioning, self.captioning), changed(model.decoding, self.decoding)

    def _check_free(self, photos: Iterable[Photo]) -> None:
        """Refuse to write over what lies among the images and is not ours."""
        folders = {os.path.dirname(os.path.realpath(photo.file)) for photo in photos}
        ours = noted_outputs(self.out)
        for target in (target for photo in photos for target in self.outputs(photo)):
            path = os.path.join(os.path.realpath((self.out / target).parent), target.name)
            if os.path.dirname(path) in folders and os.path.lexists(path) and path not in ours:
                raise ValueError(
                    f"--out {self.out}: would write over {printable(path)}; give another folder"
                )

    def _write(self, photo: Photo, caption: Caption, image: Tensor) -> None:
        print(f"{printable(photo.output)}: {caption.text}{_remark(caption)}")
        atomic_write_text(self.out / photo.caption, f"{caption.text}\n")
        save_png(self.out / photo.reconstruction, image)

    # --- the record of what is answered ----------------------------------------------------------

    @cached_property
    def _recorded(self) -> dict[str, list[str]]:
        """Digests by output, of an earlier run; a line that was not written to its end is none."""
        recorded = {}
        try:
            lines = (self.out / RECORD / JOURNAL).read_text().splitlines()
        except FileNotFoundError:
            return {}
        for line in lines:
            try:
                recorded |= json.loads(line)
            except ValueError:
                continue
        return recorded

    def _digests(self, photo: Photo) -> list[str] | None:
        """Of the image, its caption and its reconstruction; None where one cannot be read."""
        files = (photo.file, self.out / photo.caption, self.out / photo.reconstruction)
        try:
            return [sha256_of(file).hex() for file in files]
        except OSError:
            return None


def content_key(file: Path) -> int:
    """Of the image, wherever it stands and whatever it is called: 40 bits of the hash of its
    bytes."""
    return int.from_bytes(sha256_of(file)[:5])


def reconstruct(
    model: UnifiedModel,
    seen: Sequence[Seen],
    captioning: CaptionSettings,
    decoding: DecodeSettings,
    seed: int,
) -> Iterator[tuple[int, tuple[Caption, Tensor]]]:
    """As ``Loop.reconstruct``, by a model that is both halves."""
    keys = [each.key for each in seen]
    images = [each.image for each in seen]
    captions, painted = autoencode(model, images, captioning, decoding, seed=seed, keys=keys)
    say_cut(painted.metrics, len(seen))
    columns = (captions.texts, captions.truncated.tolist(), painted.images)
    for place, (text, is_cut, image) in enumerate(zip(*columns, strict=True)):
        yield place, (Caption(text, is_cut), image)


def _remark(caption: Caption) -> str:
    if caption.is_cut:
        return "  (cut at the cap: raise --captioning.max-new-tokens)"
    return "" if caption.text else "(empty caption)"


def _read_line(file: Path) -> str:
    """As it was written, without the line's end."""
    with open(file, encoding="utf-8", newline="") as opened:
        return opened.read()[:-1]
