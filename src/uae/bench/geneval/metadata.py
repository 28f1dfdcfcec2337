"""A prompt's metadata, as a line of GenEval's ``evaluation_metadata.jsonl`` has it, looked at
before it is judged by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """As result rows hold it, and by which prompts are told apart."""
    return json.dumps(metadata)


def check_metadata(metadata: Any, place: str) -> None:
    """A ValueError in one line where the rules could not read it."""
    if not isinstance(metadata, Mapping):
        raise ValueError(f"{place}: expected an object, got {_start(metadata)}")
    for key in ("tag", "prompt"):
        if not isinstance(metadata.get(key), str):
            raise ValueError(
                f"{place}: expected GenEval's metadata with a {key}, got {_start(metadata)}; take "
                "evaluation_metadata.jsonl"
            )
    for key in ("include", "exclude"):
        clauses = metadata.get(key, [])
        if not isinstance(clauses, Sequence) or isinstance(clauses, str):
            raise ValueError(f"{place}: expected a list as {key}, got {_start(clauses)}")
        for number, clause in enumerate(clauses):
            _check_clause(clause, f"{place}, {key} {number}")
            _check_position(clause.get("position"), number, f"{place}, {key} {number}")


def _check_clause(clause: Any, place: str) -> None:
    is_object = isinstance(clause, Mapping) and isinstance(clause.get("class"), str)
    if not is_object or not isinstance(clause.get("color", ""), str):
        raise ValueError(
            f'{place}: expected {{"class": "…", "count": …}}, perhaps with a color, got '
            f"{_start(clause)}"
        )
    count = clause.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f"{place}: expected a count of 0 or more, got {_start(count)}")


def _check_position(position: Any, number: int, place: str) -> None:
    """A relation, and which of the clauses before is the target."""
    if position is None:
        return
    is_pair = isinstance(position, Sequence) and len(position) == 2
    if not is_pair or not isinstance(position[1], int) or not 0 <= position[1] < number:
        raise ValueError(
            f'{place}: expected a position as ["left of", 0], of a clause before it, got '
            f"{_start(position)}"
        )


def _start(value: Any) -> str:
    return json.dumps(value, default=str)[:60]
