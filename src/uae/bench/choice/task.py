"""What a model is asked, and the file in which it answers.

    OUT/answers.jsonl    index, answer, and a hash of the question with its images
    OUT/settings.json    what the folder was begun with

A question is asked again where it, its options or its images are no longer what was asked.

The prompt is VLMEvalKit's. Deviation: images come first also for MMMU, where VLMEvalKit puts each
in the place of its ``<image n>``; the words stay in the text.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from uae.bench.api import Answers
from uae.bench.choice.pictures import QuestionImages
from uae.bench.choice.table import Index, Row
from uae.bench.provenance import provenance
from uae.images.read import ImageError, read_image_bytes
from uae.models.base import Captioner
from uae.types import RoundTrip
from uae.utils.json_lines import JsonLines
from uae.utils.outputs import check_out_folder
from uae.utils.processes import is_main, of_main

ANSWERS = Path("answers.jsonl")
Prompt = Literal["options", "question"]


def prompt_of(row: Row, kind: Prompt) -> str:
    """What is asked: hint, question and options as VLMEvalKit puts them, or the question alone."""
    if kind == "question":
        return row.question
    lines = [f"Hint: {row.hint}\n"] if row.hint else []
    lines.append(f"Question: {row.question}\n")
    if row.choices and not row.is_open:
        lines.append("Options:\n")
        lines += [f"{letter}. {text}\n" for letter, text in row.choices.items()]
        lines.append("Please select the correct answer from the options above. \n")
    return "".join(lines)


@dataclass(frozen=True)
class AnswerQuestions:
    """Answer a table of questions, greedily."""

    images: QuestionImages
    """Of the table's questions."""
    dataset: str
    model: str
    out: Path
    prompt: Prompt
    max_new_tokens: int
    batch_size: int

    progress = ("answering", "batches")

    @property
    def record(self) -> Path:
        return self.out / "settings.json"

    @property
    def journal(self) -> Path:
        return self.out / ANSWERS

    def items(self) -> list[Index]:
        """The questions that can be used."""
        check_out_folder(self.out)
        return self.images.table.indexes

    def settings(self, model: Captioner, items: Sequence[Index]) -> dict[str, Any]:
        return {
            "model": provenance(self.model, model),
            "dataset": self.dataset,
            "prompt": self.prompt,
            "max_new_tokens": self.max_new_tokens,
        }

    def outputs(self, item: Index) -> list[Path]:
        return [ANSWERS]

    def is_answered(self, item: Index) -> bool:
        known = self._recorded.get(item)
        if known is None:
            return False
        try:
            return known[0] == self._key(self.images.table.row(item))
        except ValueError:  # an image cannot be had: answering says so
            return False

    def prepare(self) -> None:
        """Nothing: questions have nothing in common."""

    @torch.no_grad()
    def answer(
        self, model: Captioner, items: Sequence[Index]
    ) -> Iterator[tuple[Index, str | None]]:
        """The same image is given as one tensor, so that it is encoded once."""
        rows, pictures, tensors = [], {}, []
        for index in items:
            row = self.images.table.row(index)
            try:
                digest = self.images.digest(row)
                if digest not in pictures:
                    pictures[digest] = self._picture(row)
            except ValueError as error:
                print(f"left out: {error}", file=sys.stderr)
                yield index, str(error)
                continue
            rows.append(row)
            tensors.append(pictures[digest])
        if rows:
            prompts = [prompt_of(row, self.prompt) for row in rows]
            texts = model.answer(tensors, prompts, max_new_tokens=self.max_new_tokens)
            for row, text in zip(rows, texts, strict=True):
                key = self._key(row)
                self._said[row.index] = {"index": row.index, "key": key, "answer": text}
                yield row.index, None

    def line(self, item: Index) -> dict[str, Any]:
        return self._said.pop(item)

    def round_trips(self, answers: Answers[Index]) -> dict[str, RoundTrip]:
        """None: nothing is painted."""
        return {}

    def texts(self, answers: Answers[Index]) -> dict[Index, str]:
        """What was answered. All processes have it from the main one."""
        recorded = of_main(self._read() if is_main() else {})
        return {index: recorded[index][1] for index in answers.in_order()}

    def _picture(self, row: Row) -> Tensor:
        files = self.images.files(row)
        if len(files) != 1:
            problem = (
                f"expected a question about one image, which {self.model} answers, got one about "
                f"{len(files)}; let another model answer (--answerer)"
            )
            raise ValueError(self.images.table.told(row, problem))
        try:
            return read_image_bytes(files[0], "its image")
        except ImageError as error:
            raise ValueError(self.images.table.told(row, str(error))) from error

    def _key(self, row: Row) -> str:
        """Of all that an answer depends on, beside the folder's settings."""
        parts = [prompt_of(row, self.prompt), self.images.digest(row)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def _said(self) -> dict[Index, dict[str, Any]]:
        """Lines that were not asked for yet."""
        return {}

    @cached_property
    def _recorded(self) -> dict[Index, tuple[str, str]]:
        """Of an earlier run."""
        return self._read()

    def _read(self) -> dict[Index, tuple[str, str]]:
        """Key and answer of each question; of two lines the later one."""
        if not self.journal.exists():
            return {}
        with closing(JsonLines(self.journal, _is_answer)) as lines:
            return {line["index"]: (line["key"], line["answer"]) for _, line in lines}


def _is_answer(value: Any) -> bool:
    """Is it a line that is written here?"""
    kinds = {"index": (int, str), "key": str, "answer": str}
    return isinstance(value, dict) and all(
        isinstance(value.get(name), kind) for name, kind in kinds.items()
    )
