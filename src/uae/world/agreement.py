"""How much two accounts of a scene agree: attributes that both state, of objects matched as well as
they can be.

Attributes are shape, colour, size and cell of each object, the word and the background. With R the
right ones, S those that one account states and T those that the other asks for,

    precision = R / S,   recall = R / T,   F1 = 2 R / (S + T)
"""

from __future__ import annotations

from typing import NamedTuple

from uae.world.language import Mention, read_caption


class Agreement(NamedTuple):
    """Counts of attributes."""

    right: int
    """Stated by both."""
    said: int
    """Stated by the one that is judged."""
    asked: int
    """Stated by the one that is held to be true."""

    @property
    def is_exact(self) -> bool:
        """The other says the same, and no more."""
        return self.right == self.asked == self.said

    @property
    def precision(self) -> float:
        return self.right / self.said if self.said else 1.0

    @property
    def recall(self) -> float:
        return self.right / self.asked if self.asked else 1.0

    @property
    def f1(self) -> float:
        total = self.said + self.asked
        return 2 * self.right / total if total else 1.0


def agreement(text: str, caption: str) -> Agreement:
    """How much of the text the caption keeps."""
    asked, said = read_caption(text), read_caption(caption)
    others = ((asked.word, said.word), (asked.background, said.background))
    return Agreement(
        right=best_match(asked.mentions, said.mentions)
        + sum(a is not None and a == b for a, b in others),
        asked=sum(map(_num_stated, asked.mentions)) + sum(a is not None for a, _ in others),
        said=sum(map(_num_stated, said.mentions)) + sum(b is not None for _, b in others),
    )


def best_match(asked: list[Mention], said: list[Mention]) -> int:
    """Attributes that agree, where each object of one text is at most one of the other."""
    best: dict[frozenset[int], int] = {frozenset(): 0}  # by the objects that are taken
    for mention in said:
        longer = dict(best)
        for taken, right in best.items():
            for i, other in enumerate(asked):
                if i not in taken:
                    grown = taken | {i}
                    longer[grown] = max(longer.get(grown, 0), right + _agreement(other, mention))
        best = longer
    return max(best.values())


def _values(mention: Mention) -> tuple[object, ...]:
    return mention.shape, mention.color, mention.size, mention.cell


def _num_stated(mention: Mention) -> int:
    return 1 + mention.num_stated


def _agreement(one: Mention, other: Mention) -> int:
    pairs = zip(_values(one), _values(other), strict=True)
    return sum(a is not None and a == b for a, b in pairs)
