"""From rows and answers to which were right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from uae.bench.choice.circular import Outcome, base_of
from uae.bench.choice.judge import Unread
from uae.bench.choice.reading import Reading, read_answer
from uae.bench.choice.table import Index, Row

Judge = Callable[[Sequence[Unread]], Sequence[Reading]]


def read_outcomes(
    rows: Iterable[Row], texts: Mapping[Index, str], judge: Judge | None = None
) -> list[Outcome]:
    """Of all rows that have an answer. judge: reads what the rules cannot, all of it at once."""
    outcomes: list[Outcome] = []
    unread: dict[int, Unread] = {}
    for row in rows:
        if row.index not in texts:
            continue
        text = texts[row.index]
        reading = read_answer(text, row.choices)
        if reading.letter is None:
            unread[len(outcomes)] = Unread(row.question, row.choices, text, row.answer)
        outcomes.append(_outcome(row, reading))
    if judge is not None and unread:
        for place, reading in zip(unread, judge(list(unread.values())), strict=True):
            is_right = reading.letter == unread[place].right
            outcomes[place] = replace(outcomes[place], is_right=is_right, way=reading.way)
    return outcomes


def _outcome(row: Row, reading: Reading) -> Outcome:
    return Outcome(
        index=row.index,
        is_right=reading.letter == row.answer and reading.way != "refusal",
        group=base_of(row.index, row.group),
        num_options=len(row.choices),
        split=row.split,
        category=row.category,
        l2_category=row.l2_category,
        way=reading.way,
    )
