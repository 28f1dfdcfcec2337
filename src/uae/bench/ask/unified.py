"""Answers of a unified model of ours: one question about one image, greedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from uae.bench.ask.api import Question, Reply
from uae.bench.ask.local import batches
from uae.bench.provenance import provenance
from uae.images.read import ImageError, read_image
from uae.models.base import UnifiedModel
from uae.utils.messages import one_line


@dataclass(frozen=True)
class UnifiedAsker:
    """A model that is loaded already."""

    source: str
    """What it was loaded from."""
    model: UnifiedModel
    batch_size: int = 8
    """Questions at a time."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"answerer": "uae", **self._provenance}

    def batches(self, questions: Sequence[Question]) -> list[list[int]]:
        return list(batches(questions, self.batch_size))

    def ask(
        self, questions: Sequence[Question], max_new_tokens: int
    ) -> Iterator[tuple[int, Reply]]:
        """The model counts no tokens and does not tell an answer that the limit cut."""
        for batch in self.batches(questions):
            images, problems = self._images(questions, batch)
            yield from ((place, Reply(None, problem)) for place, problem in problems.items())
            if images:
                texts = [questions[place].text for place in images]
                answers = self.model.answer(
                    list(images.values()), texts, max_new_tokens=max_new_tokens
                )
                yield from zip(images, map(Reply, answers), strict=True)

    @torch.no_grad()
    def first_tokens(
        self, questions: Sequence[Question], forms: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float] | str]]:
        encoder: Any = self.model.encoder
        for batch in self.batches(questions):
            images, problems = self._images(questions, batch)
            yield from problems.items()
            if not images:
                continue
            texts = [questions[place].text for place in images]
            prefix = encoder.prefill(encoder.look(list(images.values()), texts))
            logits = encoder.advance(prefix, prefix.last_token[:, None])[:, -1]
            for place, row in zip(images, logits.float().softmax(-1), strict=True):
                ids = [encoder.tokenize_answer(form)[0] for form in forms[place]]
                yield place, row[ids].tolist()

    def _images(
        self, questions: Sequence[Question], batch: Sequence[int]
    ) -> tuple[dict[int, Tensor], dict[int, str]]:
        """Of the questions that can be asked, and why others cannot."""
        images: dict[int, Tensor] = {}
        problems: dict[int, str] = {}
        for place in batch:
            files = questions[place].images
            if len(files) != 1:
                problems[place] = (
                    f"expected a question about one image, which {self.source} answers, got one "
                    f"about {len(files)}; ask another model"
                )
                continue
            try:
                images[place] = read_image(files[0])
            except (ImageError, OSError) as error:
                problems[place] = one_line(error)
        return images, problems

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        return provenance(self.source, self.model)
