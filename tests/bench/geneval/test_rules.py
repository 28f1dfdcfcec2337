"""GenEval's rules: what the official code answered, and the rules stated a second time."""

from __future__ import annotations

import gzip
import json
import math
import random
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from tests.bench.oracles import SHARED
from uae.bench.geneval.classes import COLORS, OBJECTS, label_of_class
from uae.bench.geneval.colors import colors_of
from uae.bench.geneval.rules import relations, rule

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")


def as_arrays(detections: dict[str, list[list[float]]]) -> dict[str, np.ndarray]:
    return {name: np.array(boxes, np.float32).reshape(-1, 5) for name, boxes in detections.items()}


def as_sets(reason: str) -> list[Any]:
    """Lines, with the relations that one names as a set."""
    lines = []
    for line in reason.split("\n"):
        head, found, rest = line.partition(", found ")
        if rest.endswith(" target"):
            lines.append((head, frozenset(rest.removesuffix(" target").split(" and "))))
        else:
            lines.append(head + found + rest)
    return lines


# --- what the official code answered -------------------------------------------------------------


@pytest.fixture(scope="module")
def verdicts() -> list[dict[str, Any]]:
    path = SHARED / "oracles/geneval_verdicts.jsonl.gz"
    if not path.exists():
        pytest.skip(f"needs {path.name}, published with the task and not part of the project")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def answer(row: dict[str, Any]) -> tuple[Any, Any, Any]:
    given, official = row["input"], row["official"]
    ruling = rule(
        as_arrays(given["detections"]),
        lambda name, places: [given["colors"][name][place] for place in places],
        given["metadata"],
    )
    return (
        ruling.kept == official["kept"],
        ruling.correct == official["correct"],
        as_sets(ruling.reason) == as_sets(official["reason"]),
    )


@pytest.mark.parametrize("flag", ["", "tie_order", "tie_verdict", "float32", "two_relations"])
def test_verdicts_are_the_official_ones(verdicts: list[dict[str, Any]], flag: str):
    """Those with a flag apart, so that it shows which rule is broken."""
    rows = [row for row in verdicts if (flag in row["flags"] if flag else not row["flags"])]
    wrong = [row["id"] for row in rows if answer(row) != (True, True, True)]
    assert len(rows) >= 10 and wrong == []


def test_colors_are_the_official_ones(verdicts: list[dict[str, Any]]):
    rows = [row["input"] for row in verdicts if "color_logits" in row["input"]]
    assert len(rows) >= 40
    for row in rows:
        for name, logits in row["color_logits"].items():
            assert colors_of(torch.tensor(logits)) == row["colors"][name]


# --- the rules a second time ---------------------------------------------------------------------


def f32(value: float) -> float:
    return float(np.float32(value))


def best(boxes: list[list[float]], tag: str) -> list[int]:
    limit = f32(0.9) if tag == "counting" else f32(0.3)
    ranked = sorted(((box[4], place) for place, box in enumerate(boxes)), reverse=True)
    return [place for score, place in ranked if score > limit][:16]


def direction(a: list[float], b: list[float]) -> set[str]:
    """In double precision: random boxes do not lie on the limits."""
    o = [(a[i] + a[i + 2]) / 2 - (b[i] + b[i + 2]) / 2 for i in (0, 1)]
    reach = [0.1 * (abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i])) for i in (0, 1)]
    moved = [math.copysign(max(abs(o[i]) - reach[i], 0.0), o[i]) for i in (0, 1)]
    if max(map(abs, moved)) < 1e-3:
        return set()
    x, y = (part / math.hypot(*o) for part in moved)
    facts = [("left of", x < -0.5), ("right of", x > 0.5), ("above", y < -0.5), ("below", y > 0.5)]
    return {name for name, is_so in facts if is_so}


def second_opinion(detections: dict, colors: dict, metadata: dict) -> tuple[dict, list[Any]]:
    """Boxes that count, and the failed clauses: (what, class, numbers …)."""
    kept = {name: best(boxes, metadata["tag"]) for name, boxes in detections.items()}
    failed: list[Any] = []
    groups: list[list[int] | None] = []
    names = [clause["class"] for clause in metadata["include"]]
    for clause in metadata["include"]:
        name, wanted = clause["class"], clause["count"]
        group = kept.get(name, [])[:wanted]
        seen = Counter(colors[name][place] for place in group) if name in colors else Counter()
        groups.append(None)
        if len(group) != wanted:
            failed.append(f"expected {name}>={wanted}, found {len(group)}")
        elif "color" in clause and seen[clause["color"]] != wanted:
            color, hues = clause["color"], [f"{seen[c]} {c}" for c in COLORS if seen[c]]
            found = f"found {seen[color]} {color}; and {', '.join(hues)}"
            failed.append(f"expected {color} {name}>={wanted}, {found}")
        elif "position" in clause and groups[clause["position"][1]] is None:
            failed.append(f"no target for {name} to be {clause['position'][0]}")
        else:
            relation, target = clause.get("position", (None, None))
            others = groups[target] if relation else []
            pairs = (
                direction(detections[name][place], detections[names[target]][other])
                for place in group
                for other in others or []
            )
            misplaced = next((found for found in pairs if relation not in found), None)
            if misplaced is None:
                groups[-1] = group
            else:
                failed.append((f"expected {name} {relation} target", frozenset(misplaced or {""})))
    for clause in metadata.get("exclude", []):
        if (number := len(kept.get(clause["class"], []))) >= clause["count"]:
            failed.append(f"expected {clause['class']}<{clause['count']}, found {number}")
    return {name: places for name, places in kept.items() if places}, failed


def random_metadata(tag: str, rng: random.Random) -> dict[str, Any]:
    """Of the benchmark's kind, and now and then beyond it."""
    names = rng.sample(OBJECTS, 3)
    number = {"single_object": 1, "counting": 1, "colors": 1}.get(tag, 2)
    clauses: list[dict[str, Any]] = [
        {"class": name, "count": rng.choice([1, 1, 1, 2])} for name in names[:number]
    ]
    if tag == "counting":
        count = rng.randint(2, 4)
        clauses = [{"class": names[0], "count": count}]
        return {
            "tag": tag,
            "include": clauses,
            "exclude": [{"class": names[0], "count": count + 1}],
            "prompt": "",
        }
    if tag in ("colors", "color_attr"):
        clauses = [clause | {"color": rng.choice(COLORS)} for clause in clauses]
    if tag == "position":
        clauses[1]["position"] = [rng.choice(RELATIONS), 0]
        if rng.random() < 0.2:
            clauses.append({"class": names[2], "count": 1, "position": [rng.choice(RELATIONS), 1]})
        if rng.random() < 0.2:
            clauses[1]["color"] = rng.choice(COLORS)
    return {"tag": tag, "include": clauses, "prompt": ""}


def random_objects(metadata: dict[str, Any], rng: random.Random) -> tuple[dict, dict]:
    """Boxes and colours, right more often than chance has it."""
    high = 0.9 if metadata["tag"] == "counting" else 0.3
    detections: dict[str, list[list[float]]] = {}
    colors: dict[str, list[str]] = {}
    for clause in metadata["include"]:
        number = clause["count"] + rng.choice([-1, 0, 0, 0, 0, 1, 20 if rng.random() < 0.1 else 0])
        scores = [
            f32(rng.choice([high, rng.random(), rng.uniform(high, 1)])) for _ in range(number)
        ]
        scores += [f32(rng.uniform(high, 1))] * (clause["count"] if rng.random() < 0.5 else 0)
        spread = rng.choice([20, 60, 200])
        boxes = []
        for score in scores:
            x, y = rng.uniform(0, spread), rng.uniform(0, spread)
            if relation := clause.get("position", [""])[0]:
                x += {"left of": -150, "right of": 150}.get(relation, 0) * (rng.random() < 0.9)
                y += {"above": -150, "below": 150}.get(relation, 0) * (rng.random() < 0.9)
            box = [x, y, x + rng.uniform(1, 80), y + rng.uniform(1, 80)]
            boxes.append([*map(f32, box), score])
        detections[clause["class"]] = boxes
        right = clause.get("color", "red")
        is_good = rng.random() < 0.7
        colors[clause["class"]] = [
            right if is_good or rng.random() < 0.5 else rng.choice(COLORS) for _ in boxes
        ]
    return detections, colors


@pytest.mark.parametrize("tag", TAGS)
def test_the_rules_stated_twice_agree(tag: str):
    rng = random.Random(f"geneval {tag}")
    num_right = 0
    for number in range(1000):
        metadata = random_metadata(tag, rng)
        detections, colors = random_objects(metadata, rng)
        ruling = rule(
            as_arrays(detections),
            lambda name, places, colors=colors: [colors[name][place] for place in places],
            metadata,
        )
        kept, failed = second_opinion(detections, colors, metadata)
        assert ruling.kept == kept, number
        assert as_sets(ruling.reason) == (failed or [""]), number
        assert ruling.correct == (not failed), number
        num_right += ruling.correct
    assert 150 < num_right < 850  # neither verdict is the rule


# --- by hand -------------------------------------------------------------------------------------


def box(x: float, y: float, size: float = 10) -> np.ndarray:
    return np.array([x, y, x + size, y + size, 1], np.float32)


def test_relations_by_hand():
    assert relations(box(0, 0), box(100, 0)) == ["left of"]
    assert relations(box(100, 0), box(0, 0)) == ["right of"]
    assert relations(box(0, 0), box(0, 100)) == ["above"]
    assert relations(box(0, 100), box(0, 0)) == ["below"]
    assert relations(box(100, 100), box(0, 0)) == ["right of", "below"]
    assert relations(box(2, 0), box(0, 0)) == []  # within a tenth of both sizes
    assert relations(box(4, 0), box(0, 0)) == []  # (4 - 2) / 4 is not above a half
    assert relations(box(5, 0), box(0, 0)) == ["right of"]


def test_a_color_is_asked_only_of_boxes_that_matter():
    asked = []
    detections = as_arrays({"dog": [[0, 0, 9, 9, s] for s in (0.2, 0.5, 0.9)], "cat": []})
    clauses = [
        {"class": "dog", "count": 1, "color": "red"},
        {"class": "cat", "count": 1, "color": "red"},
    ]

    def color_of(name: str, places: Any) -> list[str]:
        asked.append((name, list(places)))
        return ["red"]

    ruling = rule(detections, color_of, {"tag": "colors", "include": clauses, "prompt": ""})
    assert asked == [("dog", [2])]
    assert ruling.kept == {"dog": [2, 1]}
    assert ruling.reason == "expected cat>=1, found 0"


def test_an_excluded_class_that_is_not_there():
    metadata = {"tag": "x", "exclude": [{"class": "cat", "count": 0}], "prompt": ""}
    assert rule({}, lambda name, places: [], metadata).reason == "expected cat<0, found 0"


# --- classes -------------------------------------------------------------------------------------


def test_the_classes_are_those_of_the_published_prompts():
    path = SHARED / "geneval/object_names.txt"
    if not path.exists():
        pytest.skip("needs object_names.txt, published with the benchmark")
    assert list(OBJECTS) == path.read_text().split("\n")[:-1]


def test_a_checkpoints_names_are_recognised():
    coco = dict(enumerate(OBJECTS))
    assert list(label_of_class(coco).values()) == list(range(80))
    other = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
    older = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa"}
    older |= {"potted plant": "pottedplant", "dining table": "diningtable", "tv": "tvmonitor"}
    renamed = {79 - i: (other | older).get(name, name) for i, name in coco.items()}
    assert list(label_of_class(renamed).values()) == list(range(79, -1, -1))
    with pytest.raises(ValueError, match=re.escape("got one of 79 that lacks 1 (toothbrush)")):
        label_of_class({i: name for i, name in coco.items() if i < 79})
