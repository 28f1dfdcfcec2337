"""Wrong attributes: scenes that differ from a given one in exactly as many known ways as asked.

An edit changes the colour, shape, size or position of one object, drops or adds one, or changes the
background or the word. No edit touches what an earlier one changed, so ``k`` edits are ``k`` wrong
attributes. Pairs of shape and colour that training never shows are not made either.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from uae.world.scene import (
    BACKGROUNDS,
    COLORS,
    GRID,
    HELD_OUT_PAIRS,
    MAX_OBJECTS,
    SEEN_PAIRS,
    SHAPES,
    SIZES,
    WORDS,
    Object,
    Scene,
    pick,
    random_order,
)

OBJECT_KINDS = ("color", "shape", "size", "position", "drop", "add")
EDIT_KINDS = (*OBJECT_KINDS, "drop_small", "background", "word")
_ATTRIBUTES = frozenset({"color", "shape", "size", "position"})


@dataclass
class _Draft:
    """A scene being edited: its objects by number, and their attributes that no edit touched."""

    scene: Scene
    objects: dict[int, Object]
    unchanged: dict[int, frozenset[str]]

    @classmethod
    def of(cls, scene: Scene) -> _Draft:
        objects = dict(enumerate(scene.objects))
        return cls(scene, objects, dict.fromkeys(objects, _ATTRIBUTES))

    def edited_scene(self) -> Scene:
        return replace(self.scene, objects=tuple(sorted(self.objects.values())))

    def free_cells(self) -> list[int]:
        """Cells that hold nothing, neither now nor at first."""
        occupied = {o.cell for o in (*self.objects.values(), *self.scene.objects)}
        occupied |= {self.scene.word.cell} if self.scene.word else set()
        return [cell for cell in range(GRID * GRID) if cell not in occupied]


def wrong_scene(scene: Scene, kind: str, rng: random.Random) -> Scene | None:
    """``scene`` with one edit of ``kind``, or None where it allows none.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in EDIT_KINDS:
        raise ValueError(f"unknown kind of edit {kind!r}: expected one of {', '.join(EDIT_KINDS)}")
    if kind == "background":
        others = [background for background in BACKGROUNDS if background != scene.background]
        return replace(scene, background=pick(rng, others))
    if kind == "word":
        return _with_other_word(scene, rng)
    draft = _Draft.of(scene)
    return draft.edited_scene() if _edit(draft, kind, rng) else None


def wrong_scenes(scene: Scene, num_wrong: int, rng: random.Random) -> list[Scene]:
    """The scene with 1, 2, … ``num_wrong`` wrong attributes.

    Each adds one of ``OBJECT_KINDS`` to the last.

    Raises:
        ValueError: where the scene does not allow so many.
    """
    draft, chain = _Draft.of(scene), []
    while len(chain) < num_wrong:
        if not any(_edit(draft, kind, rng) for kind in random_order(rng, list(OBJECT_KINDS))):
            raise ValueError(
                f"a scene of {len(scene.objects)} objects does not allow {num_wrong} wrong "
                "attributes"
            )
        chain.append(draft.edited_scene())
    return chain


def _edit(draft: _Draft, kind: str, rng: random.Random) -> bool:
    """One edit in place; False where none is possible."""
    if kind == "add":
        return _add(draft, rng)
    if kind in ("drop", "drop_small"):
        return _drop(draft, rng, small=kind == "drop_small")
    cells = draft.free_cells()
    targets = [i for i, unchanged in draft.unchanged.items() if kind in unchanged]
    if not targets or (kind == "position" and not cells):
        return False
    i = pick(rng, targets)
    if kind == "position":
        change: dict[str, Any] = {"cell": pick(rng, cells)}
    else:
        change = {kind: pick(rng, _other_values(draft.objects[i], kind))}
    draft.objects[i] = replace(draft.objects[i], **change)
    draft.unchanged[i] -= {kind}
    return True


def _other_values(o: Object, kind: str) -> list[str]:
    """Values of an attribute that the object could have instead."""
    values = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES)}[kind]
    others = [replace(o, **{kind: value}) for value in values if value != getattr(o, kind)]
    return [
        getattr(other, kind) for other in others if (other.shape, other.color) not in HELD_OUT_PAIRS
    ]


def _drop(draft: _Draft, rng: random.Random, *, small: bool) -> bool:
    """Remove an object that no edit has touched; the last one stays."""
    untouched = [i for i, unchanged in draft.unchanged.items() if unchanged == _ATTRIBUTES]
    targets = [i for i in untouched if not small or draft.objects[i].size == "small"]
    if not targets or len(draft.objects) == 1:
        return False
    i = pick(rng, targets)
    del draft.objects[i], draft.unchanged[i]
    return True


def _add(draft: _Draft, rng: random.Random) -> bool:
    cells = draft.free_cells()
    if not cells or len(draft.objects) == MAX_OBJECTS:
        return False
    shape, color = pick(rng, SEEN_PAIRS)
    number = max(draft.objects) + 1 + len(draft.scene.objects)  # never one that was in use
    draft.objects[number] = Object(pick(rng, cells), shape, color, pick(rng, tuple(SIZES)))
    draft.unchanged[number] = frozenset()
    return True


def _with_other_word(scene: Scene, rng: random.Random) -> Scene | None:
    if scene.word is None:
        return None
    others = [text for text in WORDS if text != scene.word.text]
    return replace(scene, word=replace(scene.word, text=pick(rng, others)))
