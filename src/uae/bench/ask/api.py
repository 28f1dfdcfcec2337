"""What judges and answerers have in common: a question about images, and the answer.

A benchmark asks many questions at once and takes the replies as they come. What one of them says is
kept in a transcript (``transcript.py``), so that nothing is asked twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable


@dataclass(frozen=True)
class Question:
    """One request: images first, then the text."""

    text: str
    images: tuple[Path, ...] = ()
    attempt: int = 0
    """How often it was asked before, in vain: a later attempt may be drawn otherwise."""


class Reply(NamedTuple):
    """What came back: a text, or the reason why there is none."""

    text: str | None
    problem: str | None = None
    tokens_in: int | None = None
    """Of the prompt, images included, where the answerer counts them."""
    tokens_out: int | None = None
    is_cut: bool = False
    """The limit of tokens ended the text."""


@runtime_checkable
class Asker(Protocol):
    """Answers questions about images."""

    @property
    def settings(self) -> dict[str, Any]:
        """Who answers and how, as results state it: model, weights or address, temperature."""
        ...

    def ask(
        self, questions: Sequence[Question], max_new_tokens: int
    ) -> Iterator[tuple[int, Reply]]:
        """Each question's place and reply, in whatever order they come.

        Raises:
            ValueError: where none can be answered, such as a wrong key or an unknown model.
        """
        ...


@runtime_checkable
class TokenAsker(Asker, Protocol):
    """One that also says how likely its first words were."""

    def first_tokens(
        self, questions: Sequence[Question], forms: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float] | str]]:
        """Of each question's place: for each of its surface forms, the probability that the answer
        begins with the form's first token (GenEval 2's Soft-TIFA); or the reason why there is
        none."""
        ...


@runtime_checkable
class BatchAsker(Asker, Protocol):
    """A model on this machine. Several processes have one each and share the questions; any other
    asker is asked by the main process alone, many questions at a time."""

    def batches(self, questions: Sequence[Question]) -> list[list[int]]:
        """Places of the questions that go through the model together."""
        ...
