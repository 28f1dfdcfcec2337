"""Prompts and what becomes of them.

Objects that a rewrite must name are the classes of a row's ``include``, as GenEval and GenEval++
have them, where the prompt names them too. One or many, in any case, but by the same word: a
synonym counts as lost. The objects of other prompts are not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uae.bench.ask.api import Asker, Question, Reply
from uae.bench.ask.transcript import ask_all
from uae.bench.rewrite.options import RewriterOptions

IRREGULAR = {"person": "people", "mouse": "mice", "man": "men", "woman": "women"}
ENDS = (("y", "ies"), ("f", "ves"), ("fe", "ves"))
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rewrite:
    """What becomes of a prompt."""

    prompt: str
    """As it was given."""
    painted: str
    """The reply; where that is empty, the prompt."""
    is_empty: bool = False
    is_cut: bool = False
    """The limit of tokens ended it."""
    is_too_long: bool = False
    """The decoder read its beginning alone."""
    lost: list[str] | None = None
    """Objects that it no longer names; None where the prompt's objects are not known."""
    problem: str | None = None
    """Why there is no reply, so that nothing is painted."""


def rewrite_all(
    options: RewriterOptions, asker: Asker, rows: Sequence[Row], transcript: Path
) -> list[Rewrite]:
    """One of each row's ``prompt``, from the transcript or asked now.

    Raises:
        ValueError: where the rewriter answers nothing, or the transcript is damaged.
    """
    questions = [Question(f"{options.instruction}\n\n{row['prompt']}") for row in rows]
    replies = ask_all(asker, questions, transcript, options.max_new_tokens)
    return [rewrite_of(row, reply) for row, reply in zip(rows, replies, strict=True)]


def rewrite_of(row: Row, reply: Reply) -> Rewrite:
    """What a reply makes of a row's prompt."""
    prompt = row["prompt"]
    if reply.text is None:
        problem = f"could not be rewritten: {reply.problem or 'no answer'}"
        return Rewrite(prompt, prompt, problem=problem)
    text = reply.text.strip()
    if not text:
        return Rewrite(prompt, prompt, is_empty=True, is_cut=reply.is_cut)
    return Rewrite(prompt, text, is_cut=reply.is_cut, lost=lost_objects(row, text))


def lost_objects(row: Row, rewrite: str) -> list[str] | None:
    """Objects that the prompt names and the rewrite does not; None where the row lists none."""
    include = row.get("include")
    clauses = include if isinstance(include, list) else []
    classes = [clause.get("class") for clause in clauses if isinstance(clause, dict)]
    objects = dict.fromkeys(name for name in classes if isinstance(name, str) and name.strip())
    if not objects:
        return None
    return [
        name for name in objects if is_named(name, row["prompt"]) and not is_named(name, rewrite)
    ]


def is_named(name: str, text: str) -> bool:
    """Is the object in the text, one or many, in any case?"""
    *head, last = name.lower().split()
    ends = "|".join(map(re.escape, _one_or_many(last)))
    words = r"[\s-]+".join([*map(re.escape, head), f"(?:{ends})"])
    return re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) is not None


def _one_or_many(word: str) -> list[str]:
    forms = [word, f"{word}s", f"{word}es", IRREGULAR.get(word, word)]
    return forms + [word.removesuffix(one) + many for one, many in ENDS if word.endswith(one)]
