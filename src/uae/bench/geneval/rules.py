"""GenEval's rules: what a detector found and a prompt's metadata -> right or wrong, and why.

    kept        boxes of a class with a score above 0.3 (above 0.9 where the tag is counting), the
                best 16, the later of equals first; there is no suppression of overlapping boxes
    include     of each clause: the ``count`` best boxes, then their colour, then their position
                towards those of an earlier clause; all clauses must hold
    exclude     of each clause: fewer than ``count`` boxes

A position is that of box a towards box b, with centres c, sizes d and all in float32:

    o = c_a - c_b,   o' = sign(o) max(|o| - 0.1 (d_a + d_b), 0),   (dx, dy) = o' / ‖o‖

left of where dx < -0.5, right of where dx > 0.5, above where dy < -0.5, below where dy > 0.5; two
may hold, and none where both |o'| are below 1e-3.

A colour that is wrong spares the look at the position, and what fails is nobody's target.
Deviations: of two relations a reason names the horizontal one first, where the official order is
that of a hash; an ``exclude`` of a class that is not there and of count 0 is told, where the
official code fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uae.bench.geneval.classes import COLORS

THRESHOLD, COUNTING_THRESHOLD = np.float32(0.3), np.float32(0.9)
COUNTING = "counting"
MAX_BOXES = 16
MARGIN = np.float32(0.1)
NOT_MOVED = np.float32(1e-3)

Metadata = Mapping[str, Any]
Detections = Mapping[str, np.ndarray]
"""By class: left, top, right, bottom and score in float32, ``[N 5]``, in the detector's order."""
ColorOf = Callable[[str, Sequence[int]], Sequence[str]]
"""Of a class and places among its boxes: what colours those have. Asked only where it matters."""


@dataclass(frozen=True)
class Ruling:
    """What the rules say of an image."""

    kept: dict[str, list[int]]
    """By class: places of the boxes that count, best first."""
    reasons: tuple[str, ...]
    """A line for each clause that does not hold."""

    @property
    def correct(self) -> bool:
        return not self.reasons

    @property
    def reason(self) -> str:
        return "\n".join(self.reasons)


def rule(detections: Detections, color_of: ColorOf, metadata: Metadata) -> Ruling:
    """Judge an image by what was found in it."""
    threshold = COUNTING_THRESHOLD if metadata["tag"] == COUNTING else THRESHOLD
    best = {name: best_boxes(boxes, threshold) for name, boxes in detections.items()}
    kept = {name: places for name, places in best.items() if places}
    reasons = [*_included(detections, kept, color_of, metadata), *_excluded(kept, metadata)]
    return Ruling(kept, tuple(reasons))


def best_boxes(boxes: np.ndarray, threshold: np.float32) -> list[int]:
    """Places of the boxes that count, best first."""
    scores = boxes[:, 4]
    best_first = np.argsort(scores, kind="stable")[::-1]
    return best_first[scores[best_first] > threshold][:MAX_BOXES].tolist()


def relations(box: np.ndarray, target: np.ndarray) -> list[str]:
    """Where a box is, seen from another."""
    corners = np.stack([box[:4], target[:4]]).reshape(2, 2, 2)
    center, target_center = corners.mean(axis=1)
    sizes = np.abs(corners[:, 1] - corners[:, 0])
    offset = center - target_center
    revised = np.sign(offset) * np.maximum(np.abs(offset) - MARGIN * (sizes[0] + sizes[1]), 0)
    if (np.abs(revised) < NOT_MOVED).all():
        return []
    dx, dy = revised / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return [relation for relation, is_so in holds.items() if is_so]


# --- clauses -------------------------------------------------------------------------------------


def _included(
    detections: Detections, kept: Mapping[str, list[int]], color_of: ColorOf, metadata: Metadata
) -> list[str]:
    """Of each clause that does not hold, why."""
    reasons: list[str] = []
    targets: list[np.ndarray | None] = []  # boxes of each clause so far; None where it failed
    for clause in metadata.get("include", []):
        name, count = clause["class"], clause["count"]
        found = kept.get(name, [])[:count]
        boxes = detections[name][found] if found else np.empty((0, 5), np.float32)
        problem = (
            _wrong_count(clause, found)
            or _wrong_color(clause, found, color_of)
            or _wrong_position(clause, boxes, targets)
        )
        reasons += [problem] if problem else []
        targets.append(None if problem else boxes)
    return reasons


def _wrong_count(clause: Metadata, found: Sequence[int]) -> str:
    if len(found) >= clause["count"]:
        return ""
    return f"expected {clause['class']}>={clause['count']}, found {len(found)}"


def _wrong_color(clause: Metadata, found: Sequence[int], color_of: ColorOf) -> str:
    if "color" not in clause:
        return ""
    name, count, color = clause["class"], clause["count"], clause["color"]
    colors = list(color_of(name, found))
    if colors.count(color) >= count:
        return ""
    all_found = ", ".join(f"{colors.count(c)} {c}" for c in COLORS if c in colors)
    right = f"{colors.count(color)} {color}"
    return f"expected {color} {name}>={count}, found {right}; and {all_found}"


def _wrong_position(
    clause: Metadata, boxes: np.ndarray, targets: Sequence[np.ndarray | None]
) -> str:
    """Every box against every box of the target."""
    if "position" not in clause:
        return ""
    relation, place = clause["position"]
    target = targets[place]
    if target is None:
        return f"no target for {clause['class']} to be {relation}"
    for box in boxes:
        for other in target:
            if relation not in (actual := relations(box, other)):
                found = " and ".join(actual)
                return f"expected {clause['class']} {relation} target, found {found} target"
    return ""


def _excluded(kept: Mapping[str, Sequence[int]], metadata: Metadata) -> list[str]:
    reasons = []
    for clause in metadata.get("exclude", []):
        name, count = clause["class"], clause["count"]
        number = len(kept.get(name, []))
        if number >= count:
            reasons.append(f"expected {name}<{count}, found {number}")
    return reasons
