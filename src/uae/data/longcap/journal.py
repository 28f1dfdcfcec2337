"""What was answered, line by line: the file that makes a run resumable.

``journal.jsonl`` begins with the model and the prompt; then comes one line per answer, accepted or
not, or per image that failed, by the sha256 of the image's file. A line is appended in one call as
soon as the answer is there. Whether an answer is a caption is judged when it is read, so filters
may change without asking again; a model's thoughts stay in the journal and are no part of the
caption.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uae.data.answers import Answer, caption_of
from uae.data.longcap.filters import Filters, count_words, why_rejected
from uae.utils.checkpoint import check_same_config
from uae.utils.json_lines import JsonLines

HEADER = {"model": str, "prompt": str}
FAILURE = {"sha256": str, "failed": str}
ANSWER = {
    "sha256": str,
    "text": str,
    "finish_reason": str,
    "prompt_tokens": int | float,
    "completion_tokens": int | float,
}


def is_of_journal(value: Any) -> bool:
    """Is it a line that a journal holds?"""
    if not isinstance(value, dict):
        return False
    types = next((t for t in (HEADER, FAILURE, ANSWER) if t.keys() == value.keys()), None)
    return types is not None and all(isinstance(value[key], kind) for key, kind in types.items())


def answer_of(line: dict[str, Any]) -> Answer:
    """Older lines hold numbers of tokens as a server sent them, with a fraction too."""
    tokens = int(line["prompt_tokens"]), int(line["completion_tokens"])
    return Answer(line["text"], line["finish_reason"], *tokens)


@dataclass
class ImageRecord:
    """What the journal holds of one image."""

    num_answers: int = 0
    rejected: str = ""
    """Why the last answer was no caption."""
    failed: str = ""
    """Why it will not be asked for."""
    caption_at: int = -1
    """Where the line of its caption begins; -1 without one."""
    num_words: int = 0


@dataclass
class Usage:
    """All answers in the journal, also those that were rejected."""

    num_answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, price_in: float, price_out: float) -> float:
        """At prices per million tokens."""
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6


class Journal:
    """Answers and failures by sha256, on the disk before anything else happens."""

    def __init__(
        self, folder: Path, model: str, prompt: str, filters: Filters, attempts: int
    ) -> None:
        self.records: dict[str, ImageRecord] = {}
        self.usage = Usage()
        self.num_captions = 0
        self.filters, self.attempts = filters, attempts
        self._header = {"model": model, "prompt": prompt}
        self._lines = JsonLines(folder / "journal.jsonl", is_of_journal)
        try:
            self._load()
        except ValueError:
            self._lines.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lines.close()

    def should_ask(self, sha256: str) -> bool:
        """Neither captioned nor failed, and asked less often than allowed."""
        record = self.records.get(sha256, ImageRecord())
        return record.caption_at < 0 and not record.failed and record.num_answers < self.attempts

    def num_answers(self, sha256: str) -> int:
        return self.records.get(sha256, ImageRecord()).num_answers

    def add_answer(self, sha256: str, answer: Answer) -> None:
        self._keep_answer(sha256, answer, self._append({"sha256": sha256, **asdict(answer)}))

    def add_failure(self, sha256: str, reason: str) -> None:
        self._append({"sha256": sha256, "failed": reason})
        self._record(sha256).failed = reason

    def caption(self, sha256: str) -> str:
        """The text, read from the disk."""
        return caption_of(self._lines.read(self.records[sha256].caption_at)["text"])

    def _append(self, line: dict[str, Any]) -> int:
        """The first line is preceded by model and prompt: a name that never answered binds
        nobody."""
        if self._lines.is_empty:
            self._lines.append(self._header)
        return self._lines.append(line)

    def _load(self) -> None:
        for start, line in self._lines:
            if line.keys() == HEADER.keys():
                check_same_config(line, self._header)
            elif start == 0:
                raise ValueError(
                    f"{self._lines.path}: the line of model and prompt is missing; put this "
                    f"before all others: {json.dumps(self._header)}"
                )
            elif "failed" in line:
                self._record(line["sha256"]).failed = line["failed"]
            else:
                self._keep_answer(line["sha256"], answer_of(line), start)

    def _keep_answer(self, sha256: str, answer: Answer, start: int) -> None:
        record = self._record(sha256)
        record.num_answers += 1
        self.usage.num_answers += 1
        self.usage.prompt_tokens += answer.prompt_tokens
        self.usage.completion_tokens += answer.completion_tokens
        if record.caption_at >= 0:
            return
        record.rejected = why_rejected(answer, self.filters)
        if not record.rejected:
            record.caption_at, record.num_words = start, count_words(caption_of(answer.text))
            self.num_captions += 1

    def _record(self, sha256: str) -> ImageRecord:
        return self.records.setdefault(sha256, ImageRecord())
