"""Soft-TIFA, GenEval 2's score (arXiv 2512.16853), from probabilities to numbers.

Each question about an image is asked with "Answer in one word." after it, and

    p(atom) = sum over surface forms of P(the answer begins with the form's first token)

where forms that share a first token count again, so that p can exceed 1 (as officially).

    arithmetic mean   AM = mean over atoms of p
    geometric mean    GM = (product over atoms of p) ^ (1 / atoms)
    overall           mean over images of AM, or of GM: the paper has no default, both are given
    by skill          mean over all atoms of a skill
    by atom count     mean over images of GM, by the number that the prompt file states

Hard TIFA is the share of atoms whose most likely first token is a form, without case.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

SUFFIX = " Answer in one word."
COUNTED = "How many"
DIGITS = {
    word: str(number)
    for number, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 1
    )
}
YES_FORMS = ("Yes", "yes", " yes", " Yes")


@dataclass(frozen=True)
class Atom:
    """One thing that a picture should show."""

    question: str
    answer: str
    skill: str

    @property
    def text(self) -> str:
        """What is asked."""
        return self.question + SUFFIX

    @property
    def forms(self) -> tuple[str, ...]:
        """Ways to begin the right answer. Other questions than counts are answered yes, whatever
        the file says; numbers other than one to ten have the word "other" for a digit (both as
        officially)."""
        if not self.question.startswith(COUNTED):
            return YES_FORMS
        words = (self.answer, self.answer.capitalize())
        digit = DIGITS.get(self.answer, "other")
        return (*words, *(f" {word}" for word in words), digit, f" {digit}")

    def is_form(self, token: str) -> bool:
        """Hard TIFA's verdict on the most likely first token."""
        return token.lower() in self.forms


@dataclass(frozen=True)
class Prompt2:
    """A prompt and what it is made of."""

    prompt: str
    atoms: tuple[Atom, ...]
    atom_count: int
    """As the file states it; some prompts have more questions."""


@dataclass(frozen=True)
class AtomScores:
    """The probability of each atom of an image's prompt, or hard TIFA's 0 or 1."""

    prompt: Prompt2
    values: tuple[float, ...]

    @property
    def arithmetic(self) -> float:
        return fmean(self.values)

    @property
    def geometric(self) -> float:
        if min(self.values) <= 0:
            return 0.0
        return math.exp(fmean(map(math.log, self.values)))


def by_skill(images: Iterable[AtomScores]) -> dict[str, list[float]]:
    """All atoms' values, pooled, by skill in order of first appearance."""
    values: dict[str, list[float]] = defaultdict(list)
    for image in images:
        for atom, value in zip(image.prompt.atoms, image.values, strict=True):
            values[atom.skill].append(value)
    return dict(values)


def by_atom_count(images: Iterable[AtomScores]) -> dict[int, list[float]]:
    """Geometric means of images, by the number of atoms of their prompts, ascending."""
    values: dict[int, list[float]] = defaultdict(list)
    for image in images:
        values[image.prompt.atom_count].append(image.geometric)
    return dict(sorted(values.items()))


def percent(values: Sequence[float]) -> float | None:
    """The mean, times 100; None for none."""
    return 100 * fmean(values) if values else None
