"""The world's short prompts and its exact detector as GenEval's benchmark takes them:
``uae bench geneval --prompts world --detector world``.

Prompts, painting and verdicts are those of ``uae.world.measure``. Pictures go through files of 8
bits in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from uae.bench.generate import PlacedPrompt, PromptImages
from uae.bench.geneval.judge import Judged
from uae.config import changed
from uae.models.base import UnifiedModel
from uae.world.detector import MAX_RESIDUAL, MIN_CONFIDENCE, detect
from uae.world.fidelity import paint
from uae.world.measure import at_world_size
from uae.world.prompts import (
    TAGS,
    boxes_of,
    judge,
    make_prompts,
    metadata_of,
    prompt_of_metadata,
)
from uae.world.scene import IMAGE_SIZE


@dataclass(frozen=True)
class WorldPrompts(PromptImages):
    """Paint the world's short prompts, as the world's measurements do: all in one call, as noise
    goes by the place in it. What is there already is not written again."""

    prompts_per_tag: int = 20
    """Of each of six tags."""

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        return len(TAGS) * self.prompts_per_tag

    def rows(self) -> list[dict[str, Any]]:
        return [metadata_of(prompt) for prompt in make_prompts(self.prompts_per_tag)]

    def settings(self, model: UnifiedModel, items: Sequence[PlacedPrompt]) -> dict[str, Any]:
        at_world_size(changed(model.decoding, self.decoding))
        return super().settings(model, items)

    def answer(
        self, model: UnifiedModel, items: Sequence[PlacedPrompt]
    ) -> Iterator[tuple[PlacedPrompt, str | None]]:
        if not items:
            return
        asked = self.items()
        rewrites = [self.rewrite_of(prompt) for prompt in asked]
        texts = [
            prompt.row["prompt"] if rewrite is None else rewrite.painted
            for prompt, rewrite in zip(asked, rewrites, strict=True)
        ]
        decoding = changed(model.decoding, self.decoding)
        images = paint(model, texts, decoding, self.seed, self.images_per_prompt)
        by_prompt = rearrange(images, "(p k) c h w -> p k c h w", p=len(texts))
        for prompt in items:
            rewrite = rewrites[prompt.place]
            problem = None if rewrite is None else rewrite.problem
            if problem is None:
                self.save(prompt, by_prompt[prompt.place], rewrite)
            yield prompt, problem


class WorldJudge:
    """The exact detector, and what the world's prompts require."""

    deviations = (
        "prompts are captions of the embedded world, and its exact detector judges strictly: "
        "nothing else may be in the picture",
    )

    def check(self) -> None:
        """Nothing that could be missing."""

    def check_metadata(self, metadata: Any, place: str) -> None:
        try:
            prompt_of_metadata(metadata)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{place}: expected metadata of a prompt of the embedded world, got "
                f"{str(metadata)[:60]}; give another --detector"
            ) from error

    def settings(self) -> dict[str, Any]:
        return {
            "detector": {"source": "world"},
            "min_confidence": MIN_CONFIDENCE,
            "max_residual": MAX_RESIDUAL,
        }

    def judge(
        self, pictures: Sequence[Image.Image], metadata: Sequence[Mapping[str, Any]]
    ) -> list[Judged | str]:
        return [self._judge(*pair) for pair in zip(pictures, metadata, strict=True)]

    def _judge(self, picture: Image.Image, metadata: Mapping[str, Any]) -> Judged | str:
        if picture.size != (IMAGE_SIZE, IMAGE_SIZE):
            width, height = picture.size
            return (
                f"expected {IMAGE_SIZE}x{IMAGE_SIZE} pixels of the embedded world, got "
                f"{width}x{height}"
            )
        pixels = torch.from_numpy(np.array(picture)).float() / 255
        (detection,) = detect(rearrange(pixels, "h w c -> 1 c h w"))
        verdict = judge(prompt_of_metadata(metadata), detection)
        return Judged(verdict.correct, verdict.reason, boxes_of(detection))
