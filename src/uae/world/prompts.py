"""GenEval on the embedded world: short prompts in six tags, judged by the exact detector.

After GenEval (Ghosh et al., NeurIPS 2023, arXiv 2310.11513): per tag the share of images that show
what the prompt says; ``mean_over_tags`` is the plain mean; one JSON row per image with the same
keys. Deviations: the prompts are captions of the world at the level of detail that says
just what the tag asks, of scenes that training never shows; positions are cells of the grid, not
relations; and the judgement is strict, as nothing else belongs in the picture: another object, a
word, or a cell the detector is unsure of makes it wrong under every tag.

To learn from, a picture has a grade, which says how much of it is right:

    grade = m / M · N / (N + E),  and 0.5 more where that is 1

of N required objects, each of which should be there (a point) with the attributes of its tag (a
point each): m of these M points in the best assignment of objects in the picture to required ones.
E are objects too many, words that do not belong and cells the detector is unsure of.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from uae.bench.result import Share
from uae.world.detector import Detection
from uae.world.language import caption, exhaustive_caption
from uae.world.scene import (
    BACKGROUNDS,
    CELLS,
    COLORS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    Split,
    Word,
    cell_slice,
    scene_at,
)

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_LEVELS = {"counting": "count", "position": "layout"}  # the others: colour and shape alone
_RENAMED = {"shape": "class", "color": "color", "cell": "position"}  # as GenEval calls them
EXHAUSTIVE = "exhaustive"
"""The tag of exhaustive captions. Painting may learn from them too; they are no part of GenEval."""
_TURNS = 10**6  # between the scenes of one tag and of the next
_STRIDE = 101  # scenes that a prompt of a training run may choose from; odd, so that counts vary
_ATTRIBUTES = {  # attributes that must be right, beside the number of objects
    "single_object": ("shape",),
    "two_object": ("shape",),
    "counting": (),
    "colors": ("shape", "color"),
    "position": ("shape", "cell"),
    "color_attr": ("shape", "color"),
    EXHAUSTIVE: ("cell", "shape", "color", "size"),
}


@dataclass(frozen=True)
class ScenePrompt:
    """A text, and a scene that would be right: its objects and no others, in any order; of an
    exhaustive caption its word too."""

    tag: str
    text: str
    scene: Scene

    def judged_attributes(self, objects: Sequence[Object]) -> list[dict[str, Any]]:
        """Those attributes of each object that its tag judges."""
        return [{name: getattr(o, name) for name in _ATTRIBUTES[self.tag]} for o in objects]

    @property
    def required(self) -> list[dict[str, Any]]:
        """The attributes that the image's objects must have."""
        return self.judged_attributes(self.scene.objects)


@dataclass(frozen=True)
class Verdict:
    """Whether an image shows what its prompt says, and if not, what is wrong."""

    prompt: ScenePrompt
    correct: bool
    reason: str
    detection: Detection


def make_prompts(
    num_per_tag: int = 20, *, split: Split = "test", seed: int = 0
) -> list[ScenePrompt]:
    """Different prompts of each tag.

    Split ``unseen`` names pairs of shape and colour that no training scene has.
    """
    return [prompt for tag in TAGS for prompt in _prompts_of(tag, num_per_tag, split, seed)]


def _prompts_of(tag: str, number: int, split: Split, seed: int) -> list[ScenePrompt]:
    prompts: dict[str, ScenePrompt] = {}
    for i in range(10 * number + 100):
        prompt = _prompt_of_scene(tag, split, i, seed)
        if prompt is None:
            continue
        prompts.setdefault(prompt.text, prompt)
        if len(prompts) == number:
            return list(prompts.values())
    raise ValueError(f"found only {len(prompts)} different prompts of {tag}, fewer than {number}")


def _prompt_of_scene(tag: str, split: Split, index: int, seed: int) -> ScenePrompt | None:
    """Of the ``index``-th scene of as many objects as the tag has; None where a swap would not be
    seen."""
    scene = scene_at(split, index, seed=seed, num_objects=_num_objects(tag, index), with_word=False)
    if not _shows_a_swap(scene, tag):
        return None
    rng = random.Random(f"prompt {seed} {tag} {index}")
    return ScenePrompt(tag, caption(scene, _LEVELS.get(tag, "objects"), rng), scene)


def prompt_at(split: Split, index: int, seed: int = 0) -> ScenePrompt:
    """The ``index``-th prompt of an endless row, the tags in turn, each with scenes of its own."""
    turn, number = divmod(index, len(TAGS))
    start = (number * _TURNS + turn) * _STRIDE
    places = range(start, start + _STRIDE)
    prompts = (_prompt_of_scene(TAGS[number], split, place, seed) for place in places)
    return next(prompt for prompt in prompts if prompt is not None)


def exhaustive_prompt(scene: Scene) -> ScenePrompt:
    """The scene's exhaustive caption, which requires all but the background."""
    return ScenePrompt(EXHAUSTIVE, exhaustive_caption(scene), scene)


def _num_objects(tag: str, index: int) -> int:
    if tag == "counting":
        return 2 + index % 4
    return 1 if tag in ("single_object", "colors") else 2


def _shows_a_swap(scene: Scene, tag: str) -> bool:
    """Two objects differ in shape and in colour, so that swapped ones would be seen."""
    if tag in ("single_object", "colors", "counting"):
        return True
    first, second = scene.objects
    return first.shape != second.shape and first.color != second.color


def judge(prompt: ScenePrompt, detection: Detection) -> Verdict:
    """Whether what the detector is sure of is what the prompt asks for, and nothing else."""
    required, objects = prompt.required, detection.objects
    reasons = []
    if detection.unsure_cells:
        reasons.append(f"unsure about {', '.join(CELLS[cell] for cell in detection.unsure_cells)}")
    if detection.word:
        reasons.append(f"shows the word {detection.word.text}")
    if len(objects) != len(required):
        reasons.append(f"expected {len(required)} objects, found {len(objects)}")
    elif not any(prompt.judged_attributes(order) == required for order in permutations(objects)):
        actual = prompt.judged_attributes(objects)
        reasons.append(f"expected {_in_words(required)}, found {_in_words(actual)}")
    return Verdict(prompt, not reasons, "; ".join(reasons), detection)


def grade(prompt: ScenePrompt, detection: Detection) -> float:
    """How much of what the prompt asks for the detector is sure of: 0 to 1, and 1.5 where that is
    all and nothing else is there."""
    sure = [cell.content for cell in detection.cells if cell.is_sure]
    num_points = num_missed = num_required = 0
    num_surplus = len(detection.unsure_cells)
    for kind, attributes in ((Object, _ATTRIBUTES[prompt.tag]), (Word, ("cell", "text"))):
        required = [content for content in prompt.scene.contents if isinstance(content, kind)]
        present = [content for content in sure if isinstance(content, kind)]
        points = [[_points(r, p, attributes) for p in present] for r in required]
        num_points += len(required) * (1 + len(attributes))
        num_missed += len(required) * (1 + len(attributes)) - _best_assignment(points)
        num_required += len(required)
        num_surplus += max(0, len(present) - len(required))
    share = 1 - num_missed / max(num_points, 1)
    share *= max(num_required, 1) / (max(num_required, 1) + num_surplus)
    return share + 0.5 * (share == 1)


def _points(required: Object | Word, present: Object | Word, attributes: Sequence[str]) -> int:
    """One for being there, and one for each of the attributes that is right."""
    return 1 + sum(getattr(required, name) == getattr(present, name) for name in attributes)


def _best_assignment(points: Sequence[Sequence[int]]) -> int:
    """The largest sum with at most one of each row and of each column."""
    best = {0: 0}  # by the columns that are taken, as bits
    for row in points:
        longer = dict(best)
        for taken, total in best.items():
            for column, value in enumerate(row):
                if not taken >> column & 1:
                    key = taken | 1 << column
                    longer[key] = max(longer.get(key, 0), total + value)
        best = longer
    return max(best.values())


def _in_words(objects: list[dict[str, Any]]) -> str:
    named = _with_cell_names(objects)
    return " and ".join(" ".join(o[k] for k in ("color", "shape", "cell") if k in o) for o in named)


def _with_cell_names(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**o, "cell": CELLS[o["cell"]]} if "cell" in o else o for o in objects]


def shares_by_tag(verdicts: Sequence[Verdict]) -> dict[str, Share]:
    """The share of correct images by tag."""
    return {tag: Share.of(v.correct for v in verdicts if v.prompt.tag == tag) for tag in TAGS}


def mean_over_tags(by_tag: dict[str, Share]) -> float | None:
    """Plain mean over the tags, times 100; None where one has no image."""
    percents = [share.percent for share in by_tag.values()]
    return None if None in percents else sum(percents) / len(percents)  # type: ignore[arg-type]


def geneval_rows(verdicts: Sequence[Verdict], images_per_prompt: int = 1) -> list[dict[str, Any]]:
    """GenEval's result rows, one per image; ``metadata`` and ``details`` are JSON in strings."""
    return [_geneval_row(v, *divmod(i, images_per_prompt)) for i, v in enumerate(verdicts)]


def _geneval_row(verdict: Verdict, prompt_index: int, image_index: int) -> dict[str, Any]:
    prompt = verdict.prompt
    return {
        "filename": f"{prompt_index:05d}/samples/{image_index:04d}.png",
        "tag": prompt.tag,
        "prompt": prompt.text,
        "correct": verdict.correct,
        "reason": verdict.reason,
        "metadata": json.dumps(metadata_of(prompt)),
        "details": json.dumps(boxes_of(verdict.detection)),
    }


def boxes_of(detection: Detection) -> dict[str, list[list[int | float]]]:
    """Left, top, right, bottom and confidence of the objects of each shape."""
    boxes: dict[str, list[list[int | float]]] = {}
    for cell in detection.cells:
        if cell.is_sure and isinstance(cell.content, Object):
            ys, xs = cell_slice(cell.cell)
            box = [xs.start, ys.start, xs.stop, ys.stop, round(min(1.0, cell.confidence), 4)]
            boxes.setdefault(cell.content.shape, []).append(box)
    return boxes


def metadata_of(prompt: ScenePrompt) -> dict[str, Any]:
    """What an image must show, in the layout of GenEval's metadata."""
    return {"tag": prompt.tag, "include": _include(prompt), "prompt": prompt.text}


def _include(prompt: ScenePrompt) -> list[dict[str, Any]]:
    if prompt.tag == "counting":
        return [{"class": "shape", "count": len(prompt.scene.objects)}]
    objects = _with_cell_names(prompt.required)
    return [{**{_RENAMED[k]: v for k, v in o.items()}, "count": 1} for o in objects]


def prompt_of_metadata(metadata: Mapping[str, Any]) -> ScenePrompt:
    """A prompt that requires what these metadata say; what no tag judges is made up.

    Raises:
        KeyError, TypeError, ValueError: where they are no prompt's of the world.
    """
    tag, clauses = metadata["tag"], metadata["include"]
    if tag not in TAGS:
        raise ValueError(f"expected a tag out of {', '.join(TAGS)}, got {tag}")
    if tag == "counting":
        (clause,) = clauses
        clauses = [{}] * clause["count"]
    made_up = {"class": next(iter(SHAPES)), "color": next(iter(COLORS))}
    objects = []
    for place, clause in enumerate(clauses):
        said = made_up | clause
        cell = CELLS.index(said["position"]) if "position" in said else place
        if said["class"] not in SHAPES or said["color"] not in COLORS:
            raise ValueError(f"expected a shape and a colour of the world, got {clause}")
        objects.append(Object(cell, said["class"], said["color"], next(iter(SIZES))))
    return ScenePrompt(tag, metadata["prompt"], Scene(next(iter(BACKGROUNDS)), tuple(objects)))
