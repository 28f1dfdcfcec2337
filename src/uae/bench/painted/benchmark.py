"""The options and the course of a benchmark of painted prompts: pictures first, then questions
about them, then the score.

Pictures are painted into ``OUT_images`` beside the result file, or lie in ``--images``. What was
answered is kept in ``OUT_answers.jsonl``, so that nothing is asked twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from uae.bench.api import Answers
from uae.bench.ask.api import Asker, Question, Reply
from uae.bench.ask.build import AskerOptions
from uae.bench.ask.transcript import ask_all
from uae.bench.generate import PlacedPrompt, PromptImages
from uae.bench.painted.pictures import Pictures, Rows, find_pictures, painted_pictures
from uae.bench.painted.result import PaintedResult, painted_table
from uae.bench.rewrite.options import RewriterOptions
from uae.config import DecodeOptions
from uae.utils.outputs import check_out_file


@dataclass(frozen=True)
class ListedImages(PromptImages):
    """Paint prompts that are listed already."""

    listed: tuple[Mapping[str, Any], ...] = ()
    """Rows with a ``prompt``."""

    def rows(self) -> Sequence[Mapping[str, Any]]:
        return self.listed


@dataclass(frozen=True)
class PaintedBench(ABC):
    """Whose pictures are scored, and by whom."""

    images: Path | None = None
    """Folder of pictures made elsewhere; without it --model paints them."""
    model: str = "tiny"
    """What paints: `tiny`, `tiny-ar`, `tiny-early`, a folder that uae wrote, Janus-Pro, or
    ENCODER+DECODER by hub id or folder."""
    images_per_prompt: int = 1
    """Pictures that --model paints of each prompt."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    """How they are painted; by default as the model's uae.json says, else as its family was
    published."""
    seed: int = 0
    """Of the noise or the draws that painting starts from, and of the draws of prompts."""
    rewriter: RewriterOptions = field(default_factory=RewriterOptions)
    """Who writes prompts anew before --model paints them; nobody without --rewriter.model."""
    answerer: AskerOptions = field(default_factory=AskerOptions)
    """Who looks at the pictures and answers."""
    num_bootstrap: int = 2000
    """Draws of the prompts, for intervals."""
    out: Path = Path("painted.json")
    """Result file."""

    @property
    @abstractmethod
    def rows(self) -> Rows:
        """The prompts by name, each a row with a ``prompt``."""

    @abstractmethod
    def name_of_file(self, file: str) -> str:
        """The prompt that a file of ``--images`` shows."""

    def check(self) -> None:
        check_out_file(self.out)
        if self.num_bootstrap < 1:
            raise ValueError(f"--num-bootstrap must be at least 1, got {self.num_bootstrap}")
        if self.images is not None and not self.images.exists():
            raise ValueError(f"--images {self.images}: expected pictures, found nothing there")
        self.rewriter.check(self.images)
        try:
            _ = self.rows  # an error, if they cannot be read
        except FileNotFoundError as error:
            raise ValueError(
                f"{error.filename}: expected the benchmark's file of prompts, found none there; "
                "download it and say where it is"
            ) from error
        if self.answerer.model is None or self.answerer.endpoint is not None:
            _ = self.asker  # an error, if there is none; a model here is loaded later

    def task(self) -> ListedImages | None:
        if self.images is not None:
            return None
        return ListedImages(
            prompts=Path(),
            model=self.model,
            out=self._beside("images"),
            images_per_prompt=self.images_per_prompt,
            decoding=self.decoding,
            seed=self.seed,
            rewriter=self.rewriter,
            listed=tuple(self.rows.values()),
        )

    def table(self, result: PaintedResult) -> RenderableType:
        return painted_table(result)

    @cached_property
    def asker(self) -> Asker:
        """Who answers, loaded when it is first asked."""
        return self.answerer.build()

    def pictures(self, answers: Answers[PlacedPrompt] | None) -> Pictures:
        """Those of ``--images``, or those that the model painted."""
        task = self.task()
        if task is not None and answers is not None:
            return painted_pictures(task, answers, self.rows)
        assert self.images is not None
        pictures = find_pictures(self.images, self.rows, self.name_of_file)
        if not pictures.files:
            reasons = "; ".join((*pictures.remarks, *pictures.problems.values()))
            raise ValueError(
                f"--images {self.images}: expected a picture of one of {len(self.rows)} prompts, "
                f"got none: {reasons[:300]}"
            )
        return pictures

    def check_some(self, scored: Mapping[str, Any], unscored: Mapping[str, str]) -> None:
        """A ValueError where nothing can be said; what was answered is kept."""
        if not scored:
            reasons = "; ".join(list(unscored.values())[:3])
            raise ValueError(
                f"expected at least one prompt to score, none of {len(self.rows)} can be: {reasons}"
            )

    def ask(self, questions: Sequence[Question], max_new_tokens: int) -> list[Reply]:
        """The replies, from the transcript or now."""
        return ask_all(self.asker, questions, self.transcript, max_new_tokens)

    @property
    def transcript(self) -> Path:
        """What was answered."""
        return self._beside("answers.jsonl")

    def recorded(self, answers: Answers[PlacedPrompt] | None) -> dict[str, Any]:
        """What the numbers depend on beside the answers."""
        bootstrap = {"num_bootstrap": self.num_bootstrap}
        if answers is None:
            return {"images": str(self.images), **bootstrap}
        painted = {name: value for name, value in answers.settings.items() if name != "prompts"}
        return {**painted, "images_per_prompt": self.images_per_prompt, **bootstrap}

    def _beside(self, what: str) -> Path:
        return self.out.with_name(f"{self.out.stem}_{what}")
