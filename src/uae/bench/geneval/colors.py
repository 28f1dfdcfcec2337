"""The colour of an object, by CLIP without training (GenEval, section 3).

Of a class and each of ten colours three texts are embedded, their unit vectors averaged and made
unit vectors again; an object's colour is the one whose vector is nearest to that of its crop.
Deviation: fp32 on every device, where the official code computes in fp16 on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from uae.bench.geneval.classes import COLORS
from uae.similarity.backbones import Backbone

TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}")
TEMPLATE_OF_ANYTHING = "a photo of a {color} object"
BATCH_SIZE = 16


class ColorClassifier:
    """Colours of crops, by a CLIP with its text side."""

    def __init__(self, clip: Backbone) -> None:
        self.clip = clip
        self._vectors: dict[str, Tensor] = {}
        self._vectors_of("object")  # a checkpoint without a tokenizer is refused at once

    @torch.no_grad()
    def colors(self, name: str, crops: Sequence[Image.Image]) -> list[str]:
        """Of each crop of an object of this class."""
        vectors = self._vectors_of(name)
        found: list[str] = []
        for start in range(0, len(crops), BATCH_SIZE):
            pixels = [_pixels(crop) for crop in crops[start : start + BATCH_SIZE]]
            found += colors_of(self.clip.embed(pixels) @ vectors.T)
        return found

    def _vectors_of(self, name: str) -> Float[Tensor, "10 D"]:
        if name not in self._vectors:
            with torch.no_grad():
                self._vectors[name] = torch.stack([self._vector(name, color) for color in COLORS])
        return self._vectors[name]

    def _vector(self, name: str, color: str) -> Float[Tensor, " D"]:
        texts = [
            template.format(color=color, name=name)
            for template in (*TEMPLATES, TEMPLATE_OF_ANYTHING)
        ]
        return nn.functional.normalize(self.clip.embed_text(texts).mean(0), dim=0)


def colors_of(logits: Float[Tensor, "N 10"]) -> list[str]:
    """The highest, of equals the first."""
    return [COLORS[place] for place in logits.argmax(1).tolist()]


def _pixels(crop: Image.Image) -> Float[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() / 255
