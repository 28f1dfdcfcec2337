"""Answers of any ``Asker``: a model behind an endpoint, or one that transformers loads. It may be
asked about several images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from uae.bench.ask.api import Asker, Question
from uae.bench.ask.transcript import ask_all
from uae.bench.choice.pictures import QuestionImages
from uae.bench.choice.predictions import Predictions
from uae.bench.choice.table import Index, Row
from uae.bench.choice.task import Prompt, prompt_of
from uae.utils.processes import is_main, wait


@dataclass(frozen=True)
class AskedQuestions:
    """A table's questions, put to an asker. What it said is kept, and not asked again."""

    images: QuestionImages
    """Of the table's questions."""
    folder: Path
    """Where the images lie as files, each under the hash of its content, and the transcript."""
    prompt: Prompt
    max_new_tokens: int

    def predictions(self, asker: Asker) -> Predictions:
        """Its answers, and a line for each question that got none."""
        questions: dict[Index, Question] = {}
        found = Predictions()
        for row in self.images.table.rows():
            try:
                questions[row.index] = Question(prompt_of(row, self.prompt), self._files(row))
            except ValueError as error:
                found.problems.append(str(error))
        wait()  # for the files of images
        transcript = self.folder / "transcript.jsonl"
        replies = ask_all(asker, list(questions.values()), transcript, self.max_new_tokens)
        for index, reply in zip(questions, replies, strict=True):
            if reply.text is None:
                row = self.images.table.row(index)
                found.problems.append(self.images.table.told(row, reply.problem or "no answer"))
            else:
                found.texts[index] = reply.text
        return found

    def _files(self, row: Row) -> tuple[Path, ...]:
        return tuple(self._file(content) for content in self.images.files(row))

    def _file(self, content: bytes) -> Path:
        file = self.folder / "images" / hashlib.sha256(content).hexdigest()
        if is_main() and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(".unfinished")
            unfinished.write_bytes(content)
            unfinished.replace(file)
        return file
