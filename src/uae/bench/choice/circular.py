"""Plain and circular evaluation: from answers that were read to questions that were answered.

Circular (MMBench): the rows of a question are rotations of its options. It is answered right only
if all of them are. Its rows share ``g_index``, or their index modulo 1e6; it is reported under the
row whose index that is, its base.

As officially, rotations that have no answer are not asked about, and a question whose base has no
answer is not reported; both are counted here (``Evaluation``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

CIRCULAR_NAMES = ("mmbench", "ccbench", "circular", "mmcr")
ROTATION = 10**6
Index = int | str
Method = Literal["circular", "plain"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer that was read, or a question."""

    index: Index
    is_right: bool
    group: Index
    """The base of the question that it is a rotation of."""
    num_options: int
    split: str
    category: str
    l2_category: str
    way: str
    """How the answer, or that to the question's base, was read."""


@dataclass(frozen=True)
class Evaluation:
    """The questions that are reported."""

    outcomes: list[Outcome]
    incomplete: list[Index]
    """Circular: questions with fewer answers than options, so that some rotations were not
    tried."""
    baseless: list[Index]
    """Circular: questions that are not reported, as their base has no answer."""


def is_circular_by_name(dataset: str) -> bool:
    """VLMEvalKit evaluates it so."""
    return any(name in dataset.lower() for name in CIRCULAR_NAMES)


def base_of(index: Index, group: Index | None) -> Index:
    """The question that a row is a rotation of."""
    if group is not None:
        return group
    return index % ROTATION if isinstance(index, int) else index


def evaluate(answers: Sequence[Outcome], method: Method) -> Evaluation:
    """Plain: each row is a question. Circular: the rows of a group together are one."""
    if method == "plain":
        return Evaluation(list(answers), [], [])
    groups: dict[Index, list[Outcome]] = defaultdict(list)
    for answer in answers:
        groups[answer.group].append(answer)
    found = Evaluation([], [], [])
    for name, rotations in groups.items():
        base = next((answer for answer in rotations if answer.index == name), None)
        if base is None:
            found.baseless.append(name)
            continue
        is_right = all(answer.is_right for answer in rotations)
        found.outcomes.append(replace(base, is_right=is_right))
        if len(rotations) < base.num_options:
            found.incomplete.append(name)
    return found
