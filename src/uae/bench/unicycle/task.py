"""Text to image to text: a model paints texts and says what it sees in its pictures.

OUT/00000/metadata.jsonl, OUT/00000/samples/00000.png …   as ``bench/generate.py`` writes them
OUT/00000/captions.json                                   a caption of each picture, in order
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uae.bench.generate import PlacedPrompt
from uae.bench.painted.benchmark import ListedImages
from uae.config import CaptionOptions, changed
from uae.images.read import ImageError, read_image
from uae.models.base import UnifiedModel, check_settings
from uae.utils.files import atomic_write_json


@dataclass(frozen=True)
class PaintAndCaption(ListedImages):
    """Paint texts and caption the pictures."""

    captioning: CaptionOptions = field(default_factory=CaptionOptions)
    """How pictures are captioned."""

    progress = ("painting and captioning", "texts")

    def settings(self, model: UnifiedModel, items: Sequence[PlacedPrompt]) -> dict[str, Any]:
        captioning = changed(model.captioning, self.captioning)
        check_settings(model, captioning, changed(model.decoding, self.decoding))
        return {**super().settings(model, items), "captioning": vars(captioning)}

    def is_answered(self, item: PlacedPrompt) -> bool:
        return super().is_answered(item) and self.captions_of(item) is not None

    def answer(
        self, model: UnifiedModel, items: Sequence[PlacedPrompt]
    ) -> Iterator[tuple[PlacedPrompt, str | None]]:
        for item in items:
            if not super().is_answered(item):
                yield from self._captioned(model, super().answer(model, [item]))
            else:
                yield from self._captioned(model, [(item, None)])

    def captions_of(self, item: PlacedPrompt) -> list[str] | None:
        """Of its pictures, in their order; None where they are not there, or not all."""
        try:
            captions = json.loads(self._file(item).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        is_whole = isinstance(captions, list) and len(captions) == self.images_per_prompt
        return captions if is_whole and all(isinstance(text, str) for text in captions) else None

    def _captioned(
        self, model: UnifiedModel, painted: Any
    ) -> Iterator[tuple[PlacedPrompt, str | None]]:
        for item, problem in painted:
            try:
                images = [read_image(file) for file in self.images_of(item)]
            except ImageError as error:
                yield item, f"{error}; remove it, and it is painted again"
                continue
            settings = changed(model.captioning, self.captioning)
            captions = model.caption(images, settings, seed=self.seed, step=item.place)
            atomic_write_json(self._file(item), captions.texts)
            yield item, problem

    def _file(self, item: PlacedPrompt) -> Path:
        return self.out / item.folder / "captions.json"
