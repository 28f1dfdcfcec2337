"""The world's part in ``uae bench unicycle``: texts that say all of a scene, and how much of one
text another one keeps."""

from __future__ import annotations

from typing import NamedTuple

from uae.world.language import Mention, exhaustive_caption, read_caption
from uae.world.scene import first_scenes


class Kept(NamedTuple):
    """Attributes: shape, colour, size and cell of each object, the word and the background."""

    right: int
    """Stated by both texts, of objects matched as well as they can be."""
    asked: int
    """Stated by the text."""
    said: int
    """Stated by the caption."""

    @property
    def is_exact(self) -> bool:
        """The caption says what the text says, and no more."""
        return self.right == self.asked == self.said


def texts(number: int) -> list[str]:
    """Exhaustive captions of the first scenes that no training shows."""
    return [exhaustive_caption(scene) for scene in first_scenes("test", number)]


def kept(text: str, caption: str) -> Kept:
    """How much of the text the caption keeps."""
    asked, said = read_caption(text), read_caption(caption)
    others = ((asked.word, said.word), (asked.background, said.background))
    return Kept(
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
