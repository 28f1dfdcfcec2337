"""Our models in lmms-eval (0.7): ``lmms-eval eval --model uae --model_args pretrained=tiny``.

The entry point ``uae`` of the group ``lmms_eval.models`` names this class. Answers are greedy, to
the task's ``max_new_tokens``, cut at its ``until``. A task that draws or searches by beams is
answered greedily, and told so. Likelihoods and conversations are refused before any work.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]

from uae.models.load import load_model
from uae.plugins.answers import MAX_NEW_TOKENS, Asked, answer_all


class UaeModel(lmms):
    """A model of ours, by the name that ``uae.load_model`` takes."""

    is_simple = False

    def __init__(
        self,
        pretrained: str = "tiny",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        super().__init__()
        self._batch_size, self._max_new_tokens = whole_number(batch_size), max_new_tokens
        self.accelerator = Accelerator()  # before the model, which goes to its process' GPU
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        self._model: Any = load_model(str(pretrained))
        if device is not None:
            self._model.to(device)

    @property
    def device(self) -> torch.device:
        return next(self._model.parameters()).device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer to each request, in their order."""
        if any(is_not_greedy(settings_of(request)) for request in requests):
            print("sampling and beams are not offered: answers are greedy", file=sys.stderr)
        answers: list[str] = []
        for batch, max_new_tokens in self._batches(requests):
            asked = [self._asked(request) for request in batch]
            texts = answer_all(self._model, asked, max_new_tokens)
            answers += [cut(t, settings_of(r)) for t, r in zip(texts, batch, strict=True)]
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise ValueError("expected a task of single questions, got conversations; leave it out")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise ValueError(
            "expected a task that asks for text (generate_until), got likelihoods; leave it out"
        )

    def _batches(self, requests: Sequence[Any]) -> Iterator[tuple[list[Any], int]]:
        """Neighbours of one length of answer."""
        for max_new_tokens, group in groupby(requests, self._length):
            same, size = list(group), self._batch_size
            yield from ((same[i : i + size], max_new_tokens) for i in range(0, len(same), size))

    def _length(self, request: Any) -> int:
        return int(settings_of(request).get("max_new_tokens") or self._max_new_tokens)

    def _asked(self, request: Any) -> Asked:
        doc_to_messages, _, doc_id, task, split = request.args[-5:]
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return Asked(f"{task}, document {doc_id}", list(parts_of(messages)))


def settings_of(request: Any) -> dict[str, Any]:
    """How the task wants answers; what comes before the last five arguments depends on the
    release."""
    return request.args[-4]


def parts_of(messages: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Of a question; what an assistant is to have said before is a part that no model takes."""
    for message in messages:
        if message["role"] == "assistant":
            yield "earlier answer", None
            continue
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            yield part["type"], part["text" if part["type"] == "text" else "url"]


def is_not_greedy(settings: dict[str, Any]) -> bool:
    return bool(
        settings.get("do_sample")
        or (settings.get("temperature") or 0) > 0
        or (settings.get("num_beams") or 1) > 1
    )


def cut(text: str, settings: dict[str, Any]) -> str:
    """The answer before the first of the task's stop texts."""
    stops = settings.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.partition(stop)[0] if stop else text
    return text


def whole_number(batch_size: int | str) -> int:
    """The package gives it as text.

    Raises:
        ValueError: for anything but a number from 1.
    """
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise ValueError(f"batch_size: expected a number from 1, got {batch_size}; give a number")
    return int(batch_size)
