"""Wrong attributes: scenes that differ from a given one in exactly as many known ways as asked.

An edit changes the colour, shape, size or position of one object, drops or adds one, or changes the
background or the word. No edit touches what an earlier one changed, so ``k`` edits are ``k`` wrong
attributes. Pairs of shape and colour that training never shows are not made either.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from uae.world.scene import (
    BACKGROUNDS,
    COLORS,
    GRID,
    HELD_OUT_PAIRS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    WORDS,
    Object,
    Scene,
    pick,
    shuffled,
)

OBJECT_KINDS = ("color", "shape", "size", "position", "drop", "add")
EDIT_KINDS = (*OBJECT_KINDS, "drop_small", "background", "word")
_ATTRIBUTES = frozenset({"color", "shape", "size", "position"})


@dataclass
class _Draft:
    """A scene being edited: its objects by number, and which of their attributes are still true."""

    scene: Scene
    objects: dict[int, Object]
    true: dict[int, frozenset[str]] = field(default_factory=dict)

    def changed(self) -> Scene:
        return replace(self.scene, objects=tuple(sorted(self.objects.values())))

    def free_cells(self) -> list[int]:
        taken = {o.cell for o in (*self.objects.values(), *self.scene.objects)}
        taken |= {self.scene.word.cell} if self.scene.word else set()
        return [cell for cell in range(GRID * GRID) if cell not in taken]


def wrong_scene(scene: Scene, kind: str, rng: random.Random) -> Scene | None:
    """``scene`` with one edit of ``kind``, or None where it allows none.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in EDIT_KINDS:
        raise ValueError(f"unknown kind of edit {kind!r}: expected one of {', '.join(EDIT_KINDS)}")
    if kind == "background":
        return replace(
            scene, background=pick(rng, [b for b in BACKGROUNDS if b != scene.background])
        )
    if kind == "word":
        return _other_word(scene, rng)
    draft = _draft(scene)
    return draft.changed() if _edit(draft, kind, rng) else None


def wrong_scenes(scene: Scene, num_wrong: int, rng: random.Random) -> list[Scene]:
    """The scene with 1, 2, … ``num_wrong`` wrong attributes, each adding one of ``OBJECT_KINDS`` to
    the last."""
    draft, chain = _draft(scene), []
    while len(chain) < num_wrong:
        if not any(_edit(draft, kind, rng) for kind in shuffled(rng, list(OBJECT_KINDS))):
            raise ValueError(
                f"a scene of {len(scene.objects)} objects does not allow {num_wrong} wrong "
                "attributes"
            )
        chain.append(draft.changed())
    return chain


def _draft(scene: Scene) -> _Draft:
    objects = dict(enumerate(scene.objects))
    return _Draft(scene, objects, dict.fromkeys(objects, _ATTRIBUTES))


def _edit(draft: _Draft, kind: str, rng: random.Random) -> bool:
    """One edit in place; False where none is possible."""
    if kind == "add":
        return _add(draft, rng)
    if kind in ("drop", "drop_small"):
        return _drop(draft, rng, small=kind == "drop_small")
    cells = draft.free_cells()
    targets = [i for i, true in draft.true.items() if kind in true]
    if not targets or (kind == "position" and not cells):
        return False
    i = pick(rng, targets)
    value = pick(rng, cells) if kind == "position" else pick(rng, _others(draft.objects[i], kind))
    draft.objects[i] = replace(draft.objects[i], **{"cell" if kind == "position" else kind: value})
    draft.true[i] -= {kind}
    return True


def _others(o: Object, kind: str) -> list[str]:
    """Values of an attribute that the object could have instead."""
    values = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES)}[kind]
    changed = [replace(o, **{kind: value}) for value in values if value != getattr(o, kind)]
    return [getattr(c, kind) for c in changed if (c.shape, c.color) not in HELD_OUT_PAIRS]


def _drop(draft: _Draft, rng: random.Random, *, small: bool) -> bool:
    """Remove an object that is still wholly true; the last one stays."""
    whole = [i for i, true in draft.true.items() if true == _ATTRIBUTES]
    targets = [i for i in whole if not small or draft.objects[i].size == "small"]
    if not targets or len(draft.objects) == 1:
        return False
    i = pick(rng, targets)
    del draft.objects[i], draft.true[i]
    return True


def _add(draft: _Draft, rng: random.Random) -> bool:
    cells = draft.free_cells()
    if not cells or len(draft.objects) == MAX_OBJECTS:
        return False
    pairs = [(s, c) for s in SHAPES for c in COLORS if (s, c) not in HELD_OUT_PAIRS]
    shape, color = pick(rng, pairs)
    number = max(draft.objects) + 1 + len(draft.scene.objects)  # never one that was in use
    draft.objects[number] = Object(pick(rng, cells), shape, color, pick(rng, tuple(SIZES)))
    draft.true[number] = frozenset()
    return True


def _other_word(scene: Scene, rng: random.Random) -> Scene | None:
    if scene.word is None:
        return None
    return replace(
        scene, word=replace(scene.word, text=pick(rng, [w for w in WORDS if w != scene.word.text]))
    )
