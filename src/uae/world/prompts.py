"""GenEval on the embedded world: short prompts in six tags, judged by the exact detector.

After GenEval (Ghosh et al., NeurIPS 2023, arXiv 2310.11513): per tag the share of images that show
what the prompt says; ``overall`` is the plain mean over the six tags; one JSON row per image with
the same keys. Deviations: the prompts are captions of the world at the level of detail that says
just what the tag asks, of scenes that training never shows; positions are cells of the grid, not
relations; and the judgement is strict, as nothing else belongs in the picture: another object, a
word, or a cell the detector is unsure of makes it wrong under every tag.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from uae.bench.result import Share
from uae.world.detector import Detection
from uae.world.language import caption
from uae.world.scene import CELLS, Object, Scene, Split, cell_slice, scene_at

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_LEVELS = {"counting": "count", "position": "layout"}  # the others: colour and shape alone
_JUDGED = {  # attributes that must be right, beside the number of objects
    "single_object": ("shape",),
    "two_object": ("shape",),
    "counting": (),
    "colors": ("shape", "color"),
    "position": ("shape", "cell"),
    "color_attr": ("shape", "color"),
}


@dataclass(frozen=True)
class Prompt:
    """What to draw, and a scene that would be right: its only objects, in any order."""

    tag: str
    text: str
    scene: Scene

    def wanted(self) -> list[dict[str, Any]]:
        """What must be seen of each object."""
        return [{name: getattr(o, name) for name in _JUDGED[self.tag]} for o in self.scene.objects]


@dataclass(frozen=True)
class Verdict:
    """Whether an image shows what its prompt says, and if not, what is wrong."""

    prompt: Prompt
    correct: bool
    reason: str
    detection: Detection


def make_prompts(num_per_tag: int = 20, *, split: Split = "test", seed: int = 0) -> list[Prompt]:
    """Different prompts of each tag. Split ``unseen`` names pairs of shape and colour that no
    training scene has."""
    return [prompt for tag in TAGS for prompt in _prompts_of(tag, num_per_tag, split, seed)]


def _prompts_of(tag: str, number: int, split: Split, seed: int) -> list[Prompt]:
    prompts: dict[str, Prompt] = {}
    for i in range(10 * number + 100):
        scene = scene_at(split, i, seed=seed, num_objects=_num_objects(tag, i), with_word=False)
        if not _tells_apart(scene, tag):
            continue
        text = caption(
            scene, _LEVELS.get(tag, "objects"), random.Random(f"prompt {seed} {tag} {i}")
        )
        prompts.setdefault(text, Prompt(tag, text, scene))
        if len(prompts) == number:
            return list(prompts.values())
    raise ValueError(f"found only {len(prompts)} different prompts of {tag}, fewer than {number}")


def _num_objects(tag: str, index: int) -> int:
    if tag == "counting":
        return 2 + index % 4
    return 1 if tag in ("single_object", "colors") else 2


def _tells_apart(scene: Scene, tag: str) -> bool:
    """Two objects differ in shape and colour, so that a swap shows."""
    if tag in ("single_object", "colors", "counting"):
        return True
    first, second = scene.objects
    return first.shape != second.shape and first.color != second.color


def judge(prompt: Prompt, detection: Detection) -> Verdict:
    """Whether what the detector is sure of is what the prompt asks for, and nothing else."""
    wanted, found = prompt.wanted(), detection.objects
    reasons = []
    if detection.unsure:
        reasons.append(f"unsure about {', '.join(CELLS[cell] for cell in detection.unsure)}")
    if detection.word:
        reasons.append(f"shows the word {detection.word.text}")
    if len(found) != len(wanted):
        reasons.append(f"expected {len(wanted)} objects, found {len(found)}")
    elif not any(_fits(wanted, order) for order in permutations(found)):
        reasons.append(
            f"expected {_tell(wanted)}, found {_tell([_seen(o, prompt.tag) for o in found])}"
        )
    return Verdict(prompt, not reasons, "; ".join(reasons), detection)


def _fits(wanted: list[dict[str, Any]], objects: Sequence[Object]) -> bool:
    return all(
        getattr(o, k) == v for want, o in zip(wanted, objects, strict=True) for k, v in want.items()
    )


def _seen(o: Object, tag: str) -> dict[str, Any]:
    return {name: getattr(o, name) for name in _JUDGED[tag]}


def _tell(objects: list[dict[str, Any]]) -> str:
    words = [{**o, "cell": CELLS[o["cell"]]} if "cell" in o else o for o in objects]
    return " and ".join(" ".join(o[k] for k in ("color", "shape", "cell") if k in o) for o in words)


def scores(verdicts: Sequence[Verdict]) -> dict[str, Share]:
    """The share of correct images by tag."""
    return {tag: Share.of(v.correct for v in verdicts if v.prompt.tag == tag) for tag in TAGS}


def overall(by_tag: dict[str, Share]) -> float | None:
    """Plain mean over the tags, times 100; None where one has no image."""
    percents = [share.percent for share in by_tag.values()]
    return None if None in percents else sum(percents) / len(percents)  # type: ignore[arg-type]


def rows(verdicts: Sequence[Verdict], images_per_prompt: int = 1) -> list[dict[str, Any]]:
    """GenEval's result rows, one per image; ``metadata`` and ``details`` are JSON in strings, as
    there."""
    return [_row(v, *divmod(i, images_per_prompt)) for i, v in enumerate(verdicts)]


def _row(verdict: Verdict, prompt_index: int, image_index: int) -> dict[str, Any]:
    prompt = verdict.prompt
    details: dict[str, list[list[float]]] = {}
    for found in verdict.detection.cells:
        if found.sure and isinstance(found.content, Object):
            ys, xs = cell_slice(found.cell)
            box = [xs.start, ys.start, xs.stop, ys.stop, round(min(1.0, found.confidence), 4)]
            details.setdefault(found.content.shape, []).append(box)
    return {
        "filename": f"{prompt_index:05d}/samples/{image_index:04d}.png",
        "tag": prompt.tag,
        "prompt": prompt.text,
        "correct": verdict.correct,
        "reason": verdict.reason,
        "metadata": json.dumps(
            {"tag": prompt.tag, "include": _include(prompt), "prompt": prompt.text}
        ),
        "details": json.dumps(details),
    }


def _include(prompt: Prompt) -> list[dict[str, Any]]:
    if prompt.tag == "counting":
        return [{"class": "shape", "count": len(prompt.scene.objects)}]
    renamed = {"shape": "class", "color": "color", "cell": "position"}
    wanted = [{**w, "cell": CELLS[w["cell"]]} if "cell" in w else w for w in prompt.wanted()]
    return [{**{renamed[k]: v for k, v in w.items()}, "count": 1} for w in wanted]
