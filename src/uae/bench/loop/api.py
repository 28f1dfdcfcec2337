"""What a loop of two halves is: whoever captions, and whoever paints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from uae.config import CaptionSettings, DecodeSettings
from uae.models.base import Limited


class Seen(NamedTuple):
    """An image to caption."""

    file: Path
    name: Path
    """Inside the given folder."""
    image: Tensor
    """At the size of what is painted."""
    key: int
    """Of its draws."""


class Caption(NamedTuple):
    text: str
    is_cut: bool = False


@runtime_checkable
class CaptionHalf(Protocol):
    """Whoever captions."""

    settings: CaptionSettings
    """Where nothing else is asked for."""

    def identity(self) -> dict[str, Any]:
        """Who it is, as results state it."""
        ...

    def caption(
        self, seen: Sequence[Seen], settings: CaptionSettings, seed: int
    ) -> list[Caption | str]:
        """Of each image, or the reason why there is none."""
        ...


@runtime_checkable
class PaintHalf(Protocol):
    """Whoever paints."""

    settings: DecodeSettings
    """Where nothing else is asked for."""

    def identity(self) -> dict[str, Any]:
        """Who it is, as results state it."""
        ...

    def paint(
        self, texts: Sequence[str], settings: DecodeSettings, keys: Sequence[int], seed: int
    ) -> list[Tensor | str]:
        """A picture ``[3, h, w]`` of each text, or the reason why there is none."""
        ...


@dataclass(frozen=True)
class Loop:
    """Two halves in the place of a model."""

    captioner: CaptionHalf
    painter: PaintHalf

    @property
    def captioning(self) -> CaptionSettings:
        return self.captioner.settings

    @property
    def decoding(self) -> DecodeSettings:
        return self.painter.settings

    @property
    def provenance(self) -> dict[str, Any]:
        return {"captioner": self.captioner.identity(), "painter": self.painter.identity()}

    def check_settings(self, captioning: CaptionSettings, decoding: DecodeSettings) -> None:
        """A ValueError where a half cannot caption or paint so."""
        if isinstance(self.captioner, Limited):
            self.captioner.check_settings(captioning, decoding)
        if isinstance(self.painter, Limited):
            self.painter.check_settings(captioning, decoding)

    def reconstruct(
        self,
        seen: Sequence[Seen],
        captioning: CaptionSettings,
        decoding: DecodeSettings,
        seed: int,
    ) -> Iterator[tuple[int, tuple[Caption, Tensor] | str]]:
        """Each image's place, with its caption and reconstruction or the reason why there is
        none."""
        captions = self.captioner.caption(seen, captioning, seed)
        places = [i for i, caption in enumerate(captions) if isinstance(caption, Caption)]
        yield from ((i, each) for i, each in enumerate(captions) if isinstance(each, str))
        made = [caption for caption in captions if isinstance(caption, Caption)]
        keys = [seen[i].key for i in places]
        painted = self.painter.paint([caption.text for caption in made], decoding, keys, seed)
        for place, caption, picture in zip(places, made, painted, strict=True):
            yield place, picture if isinstance(picture, str) else (caption, picture)
