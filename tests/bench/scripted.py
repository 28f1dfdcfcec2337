"""An answerer for tests: what it says is a function of the question and of the picture's colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from uae.bench.ask.api import Question, Reply

Say = Callable[[Question, tuple[int, ...]], Any]


def color_of(file: Path) -> tuple[int, ...]:
    with Image.open(file) as image:
        return image.convert("RGB").getpixel((0, 0))  # type: ignore[return-value]


@dataclass(frozen=True)
class ScriptedAsker:
    """Stands for ``AskerOptions`` and for what they build."""

    say: Say
    """The reply's text, None for no reply; for probabilities a list of them."""
    model: str = "scripted"
    endpoint: str | None = None
    asked: list[Question] = field(default_factory=list)

    def build(self) -> ScriptedAsker:
        return self

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": self.model}

    def ask(
        self, questions: Sequence[Question], max_new_tokens: int
    ) -> Iterator[tuple[int, Reply]]:
        for place, question in reversed(list(enumerate(questions))):  # in any order
            self.asked.append(question)
            text = self.say(question, color_of(question.images[0]))
            yield place, Reply(text, None if text is not None else "timed out")

    def first_tokens(
        self, questions: Sequence[Question], forms: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float] | str]]:
        for place, question in enumerate(questions):
            self.asked.append(question)
            said = self.say(question, color_of(question.images[0]))
            yield place, said if isinstance(said, str) else [float(each) for each in said]


def paint(path: Path, color: tuple[int, ...] | str, size: tuple[int, int] = (8, 8)) -> Path:
    """A picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path
