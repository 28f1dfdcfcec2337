"""Who says whether pictures show what their prompts ask for.

The official judge detects objects, classifies colours and applies the rules. The embedded world
brings a judge of its own, which is found by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from PIL import Image

from uae.bench.geneval import detector
from uae.bench.geneval.colors import TEMPLATE_OF_ANYTHING, TEMPLATES, ColorClassifier
from uae.bench.geneval.crops import crop_object
from uae.bench.geneval.detector import Detector, Found, check_detector
from uae.bench.geneval.metadata import check_metadata
from uae.bench.geneval.rules import COUNTING_THRESHOLD, MAX_BOXES, THRESHOLD, Metadata, rule
from uae.similarity.backbones import load_backbone
from uae.similarity.checkpoints import (
    ARCHITECTURES,
    check_backbone_source,
    fetch_backbone,
    library_versions,
    weights_identity,
)
from uae.utils.hub import fetch
from uae.utils.progress import phase

CLIP = ARCHITECTURES["clip"].published
DEVIATIONS = (
    "detector: transformers' Mask2Former, by default another training run of the architecture of "
    "the official file; agreement with it is unknown",
    "detector: images are stretched to multiples of 32 by Pillow, where mmdet pads; mask logits "
    "are enlarged in one step",
    "colours: CLIP in fp32, where the official code computes in fp16 on a GPU",
    "images that cannot be read are listed and not counted, where the official code stops",
)


class Judged(NamedTuple):
    """What is said of a picture."""

    correct: bool
    reason: str
    details: dict[str, list[list[float]]]
    """By class: the boxes that counted with their scores, best first."""


@runtime_checkable
class Judge(Protocol):
    """Says whether pictures show what their prompts ask for."""

    @property
    def deviations(self) -> Sequence[str]:
        """Where it departs from the official scorer."""
        ...

    def check(self) -> None:
        """A ValueError in one line where it cannot be had; no weights are read."""
        ...

    def check_metadata(self, metadata: Any, place: str) -> None:
        """A ValueError, which begins with the place, where it cannot judge by these."""
        ...

    def settings(self) -> dict[str, Any]:
        """What its verdicts depend on: weights, thresholds, versions."""
        ...

    def judge(
        self, pictures: Sequence[Image.Image], metadata: Sequence[Metadata]
    ) -> Sequence[Judged | str]:
        """Of each RGB picture the verdict, or why there can be none."""
        ...


@dataclass(frozen=True)
class ObjectJudge:
    """GenEval's judge: Mask2Former, CLIP and the rules."""

    detector: str = detector.PUBLISHED
    """Hub id or folder of Mask2Former."""
    clip: str = CLIP
    """Hub id or folder of CLIP."""
    device: str = "cpu"

    deviations = DEVIATIONS

    def check(self) -> None:
        check_backbone_source("clip", self.clip)
        check_detector(self._folder)

    def check_metadata(self, metadata: Any, place: str) -> None:
        check_metadata(metadata, place)

    def settings(self) -> dict[str, Any]:
        return {
            "detector": {
                "source": self.detector,
                "weights": self._weights_of(self._folder),
                "sides": detector.SIDES,
            },
            "clip": {
                "source": self.clip,
                "weights": self._weights_of(fetch_backbone("clip", self.clip)),
                "templates": [*TEMPLATES, TEMPLATE_OF_ANYTHING],
            },
            "threshold": round(float(THRESHOLD), 6),
            "threshold_counting": round(float(COUNTING_THRESHOLD), 6),
            "max_boxes": MAX_BOXES,
            "libraries": library_versions(),
        }

    def judge(
        self, pictures: Sequence[Image.Image], metadata: Sequence[Metadata]
    ) -> Sequence[Judged | str]:
        found = self._detector.detect(pictures)
        return [self._rule(*each) for each in zip(pictures, found, metadata, strict=True)]

    def _rule(self, picture: Image.Image, found: Found, metadata: Metadata) -> Judged:
        def color_of(name: str, places: Sequence[int]) -> list[str]:
            boxes, masks = found.boxes[name], found.masks[name]
            crops = [crop_object(picture, masks[place], boxes[place]) for place in places]
            return self._colors.colors(name, crops)

        ruling = rule(found.boxes, color_of, metadata)
        details = {name: found.boxes[name][places] for name, places in ruling.kept.items()}
        rows = {name: boxes.tolist() for name, boxes in details.items()}
        return Judged(ruling.correct, ruling.reason, rows)

    @cached_property
    def _folder(self) -> Path:
        return fetch(self.detector, "detector")

    @cached_property
    def _detector(self) -> Detector:
        return Detector(self._folder, self.device)

    @cached_property
    def _colors(self) -> ColorClassifier:
        return ColorClassifier(load_backbone("clip", self.clip, device=self.device))

    @staticmethod
    def _weights_of(folder: Path) -> str:
        with phase("reading which weights judge"):
            return weights_identity(folder)
