"""Halves of a loop: a model on this machine, one behind an endpoint, or what was written before."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from uae.bench.ask.api import Question
from uae.bench.ask.endpoint import EndpointAsker
from uae.bench.ask.painter import EndpointPainter
from uae.bench.captions import name_and_caption
from uae.bench.loop.api import Caption, Seen
from uae.bench.provenance import provenance
from uae.config import CaptionSettings, DecodeSettings
from uae.models.base import UnifiedModel, check_settings
from uae.utils.files import sha256_of
from uae.utils.messages import one_line

IN_DETAIL = CaptionSettings(
    "Describe this image in full detail, so that it could be painted again from your words alone: "
    "what is in it, how many, where, of what size, colour, shape and style. Answer with the "
    "description alone.",
    temperature=0.0,
    max_new_tokens=512,
)
PIXELS = DecodeSettings(height=1024, width=1024)


class CaptioningModel:
    """Captions by a model on this machine."""

    def __init__(self, source: str, model: UnifiedModel) -> None:
        self.source, self.model, self.settings = source, model, model.captioning

    def identity(self) -> dict[str, Any]:
        return provenance(self.source, self.model)

    def check_settings(self, captioning: CaptionSettings, decoding: DecodeSettings) -> None:
        check_settings(self.model, captioning, self.model.decoding)

    def caption(
        self, seen: Sequence[Seen], settings: CaptionSettings, seed: int
    ) -> list[Caption | str]:
        keys = [each.key for each in seen]
        captions = self.model.caption([each.image for each in seen], settings, seed=seed, keys=keys)
        pairs = zip(captions.texts, captions.truncated.tolist(), strict=True)
        return [Caption(text, is_cut) for text, is_cut in pairs]


class WrittenCaptions:
    """Captions made elsewhere, by the image's path in its folder, its name, or that without its
    extension."""

    settings = CaptionSettings()

    def __init__(self, file: Path) -> None:
        self.file, self.captions = file, read_captions(file)

    def identity(self) -> dict[str, Any]:
        return {"captions": str(self.file), "sha256": sha256_of(self.file).hex()}

    def caption(
        self, seen: Sequence[Seen], settings: CaptionSettings, seed: int
    ) -> list[Caption | str]:
        return [self._of(each.name) for each in seen]

    def _of(self, name: Path) -> Caption | str:
        for key in (str(name), name.name, str(name.with_suffix("")), name.stem):
            if key in self.captions:
                return Caption(self.captions[key])
        return f"{self.file} has no caption of it"


class EndpointCaptions:
    """Captions by a model behind an endpoint, which sees the file as it is."""

    settings = IN_DETAIL

    def __init__(self, url: str, model: str) -> None:
        self.url, self.model = url, model

    def identity(self) -> dict[str, Any]:
        return {"url": self.url, "model": self.model}

    def caption(
        self, seen: Sequence[Seen], settings: CaptionSettings, seed: int
    ) -> list[Caption | str]:
        asker = EndpointAsker(self.url, self.model, temperature=settings.temperature, seed=seed)
        questions = [Question(settings.instruction, (each.file,)) for each in seen]
        captions: list[Caption | str] = ["no answer"] * len(seen)
        for place, reply in asker.ask(questions, settings.max_new_tokens):
            text = " ".join((reply.text or "").split())
            problem = reply.problem or "an empty caption"
            captions[place] = Caption(text, reply.is_cut) if text else problem
        return captions


class PaintingModel:
    """Pictures by a model on this machine."""

    def __init__(self, source: str, model: UnifiedModel) -> None:
        self.source, self.model, self.settings = source, model, model.decoding

    def identity(self) -> dict[str, Any]:
        return provenance(self.source, self.model)

    def paint(
        self, texts: Sequence[str], settings: DecodeSettings, keys: Sequence[int], seed: int
    ) -> list[Tensor | str]:
        if not texts:
            return []
        painted = self.model.generate(texts, settings, seed=seed, keys=keys)
        say_cut(painted.metrics, len(texts))
        return list(painted.images)

    def check_settings(self, captioning: CaptionSettings, decoding: DecodeSettings) -> None:
        check_settings(self.model, self.model.captioning, decoding)


class EndpointPictures:
    """Pictures by a model behind an endpoint."""

    settings = PIXELS

    def __init__(self, url: str, model: str) -> None:
        self.url, self.model = url, model

    def identity(self) -> dict[str, Any]:
        return {"url": self.url, "model": self.model}

    def paint(
        self, texts: Sequence[str], settings: DecodeSettings, keys: Sequence[int], seed: int
    ) -> list[Tensor | str]:
        pictures: list[Tensor | str] = ["no answer"] * len(texts)
        size = f"{settings.width}x{settings.height}"
        for place, picture in EndpointPainter(self.url, self.model).paint(texts, size):
            pictures[place] = picture
        return pictures


def say_cut(metrics: Mapping[str, float], number: int) -> None:
    """A word on captions that the decoder did not read to their ends, if there were any."""
    if share := metrics.get("image/text_cut_frac"):
        print(
            f"{share:.0%} of {number} captions are longer than the decoder reads: painted "
            "without their ends",
            file=sys.stderr,
        )


def read_captions(file: Path) -> dict[str, str]:
    """Captions by image, of a .json object, or of .jsonl rows with an ``image`` (or ``file_name``)
    and a ``caption``.

    Raises:
        ValueError: naming the place where the file is something else.
    """
    try:
        if file.suffix == ".json":
            return _checked(json.loads(file.read_text(encoding="utf-8")))
        rows = {}
        # not splitlines, which ends lines at characters that captions may hold
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                rows |= _row(number, json.loads(line))
        return rows
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: expected captions of images, got {one_line(error)}") from error


def _checked(captions: Any) -> dict[str, str]:
    is_right = isinstance(captions, Mapping) and all(isinstance(c, str) for c in captions.values())
    if not is_right:
        raise ValueError("no JSON object of texts by image")
    return dict(captions)


def _row(number: int, row: Any) -> dict[str, str]:
    found = name_and_caption(row)
    if found is None:
        raise ValueError(f"line {number} without an image and a caption")
    name, caption = found
    return {name: caption}
