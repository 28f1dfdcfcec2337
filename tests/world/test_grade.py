"""The graded judge, by hand: a point for each required object that is there and for each of its
judged attributes, fewer where more is shown."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from uae.rewards.base import RewardError, WeightedSum
from uae.rewards.build import build_reward
from uae.world.data import pictures
from uae.world.detector import detect
from uae.world.prompts import (
    TAGS,
    ScenePrompt,
    _best_assignment,
    exhaustive_prompt,
    grade,
    judge,
    make_prompts,
)
from uae.world.reward import graded
from uae.world.scene import Object, Scene, Word, scene_at

CIRCLE, SQUARE = Object(0, "circle", "red", "small"), Object(5, "square", "blue", "large")
CROSS = Object(7, "cross", "green", "medium")
TWO = Scene("white", (CIRCLE, SQUARE))
ONE = Scene("white", (CIRCLE,))


def scene(*objects: Object, word: Word | None = None) -> Scene:
    return Scene("white", tuple(sorted(objects)), word)


RED_SQUARE, BLUE_CIRCLE = replace(SQUARE, color="red"), replace(CIRCLE, color="blue")
CASES = {  # tag, what would be right, what is painted, the grade
    "right": ("colors", ONE, ONE, 1.5),
    "right, elsewhere and larger": ("colors", ONE, scene(replace(CIRCLE, cell=8)), 1.5),
    "one wrong colour": ("colors", ONE, scene(BLUE_CIRCLE), 2 / 3),
    "wrong shape and colour": ("colors", ONE, scene(SQUARE), 1 / 3),
    "wrong colour that is not asked for": ("single_object", ONE, scene(BLUE_CIRCLE), 1.5),
    "nothing": ("colors", ONE, scene(), 0),
    "one missing": ("two_object", TWO, ONE, 2 / 4),
    "one too many": ("two_object", TWO, scene(CIRCLE, SQUARE, CROSS), 2 / 3),
    "one too many of one": ("single_object", ONE, TWO, 1 / 2),
    "a word that does not belong": (
        "two_object",
        TWO,
        scene(*TWO.objects, word=Word(8, "cat")),
        2 / 3,
    ),
    "colours swapped": ("color_attr", TWO, scene(BLUE_CIRCLE, RED_SQUARE), 4 / 6),
    "one of two colours wrong": ("color_attr", TWO, scene(BLUE_CIRCLE, SQUARE), 5 / 6),
    "counting, right": ("counting", TWO, scene(CROSS, SQUARE), 1.5),
    "counting, one of two": ("counting", TWO, ONE, 1 / 2),
    "counting, three for two": ("counting", TWO, scene(CIRCLE, SQUARE, CROSS), 2 / 3),
    "position, right": ("position", TWO, TWO, 1.5),
    "position, one moved": ("position", TWO, scene(replace(CIRCLE, cell=1), SQUARE), 5 / 6),
    "exhaustive, right": ("exhaustive", TWO, TWO, 1.5),
    "exhaustive, one size wrong": (
        "exhaustive",
        TWO,
        scene(replace(CIRCLE, size="large"), SQUARE),
        9 / 10,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_grades_by_hand(case: str):
    tag, right, painted, expected = CASES[case]
    (detection,) = detect(pictures([painted]))
    assert grade(ScenePrompt(tag, "", right), detection) == pytest.approx(expected)


def test_an_unsure_cell_counts_like_an_object_too_many():
    faint = 0.5 * pictures([scene(CIRCLE, SQUARE, CROSS)]) + 0.5 * pictures([TWO])
    (detection,) = detect(faint)
    assert detection.unsure_cells == (CROSS.cell,) and len(detection.objects) == 2
    assert grade(ScenePrompt("two_object", "", TWO), detection) == pytest.approx(2 / 3)


def test_the_word_of_an_exhaustive_caption_is_required():
    target = exhaustive_prompt(scene(CIRCLE, word=Word(8, "cat")))
    painted = [
        scene(CIRCLE, word=Word(8, "cat")),
        scene(CIRCLE, word=Word(8, "dog")),
        scene(CIRCLE),
        TWO,
    ]
    grades = [grade(target, detection) for detection in detect(pictures(painted))]
    # 5 points of the circle, 3 of the word; the square is no word and one too many
    assert grades == pytest.approx([1.5, 7 / 8, 5 / 8, 5 / 8 * 2 / 3])


def test_full_marks_are_what_the_strict_judge_says():
    prompts = make_prompts(4, split="validation")
    painted = [p.scene for p in prompts] + [scene_at("test", i) for i in range(len(prompts))]
    detections = detect(pictures(painted))
    pairs = list(zip(prompts + prompts, detections, strict=True))
    full = [grade(prompt, detection) == 1.5 for prompt, detection in pairs]
    assert full == [judge(prompt, detection).correct for prompt, detection in pairs]
    assert all(full[: len(prompts)]) and not all(full[len(prompts) :])


def test_the_best_assignment_is_that_of_all_orders():
    values = torch.randint(0, 6, (3, 5), generator=torch.Generator().manual_seed(0)).tolist()
    orders = permutations(range(5), 3)
    expected = max(sum(row[c] for row, c in zip(values, order, strict=True)) for order in orders)
    assert _best_assignment(values) == expected
    assert _best_assignment([[2], [3]]) == 3 and _best_assignment([[], []]) == 0


def test_as_a_reward_of_prompts():
    reward = build_reward({"judge": 1.0}, {})
    prompts = [ScenePrompt("colors", "a red circle", ONE), ScenePrompt("two_object", "", TWO)]
    painted = pictures([ONE, scene(BLUE_CIRCLE), ONE, TWO])  # K = 2 of each prompt
    values = reward([], [prompt.text for prompt in prompts], painted, prompts)
    assert values.tolist() == pytest.approx([1.5, 2 / 3, 1 / 2, 1.5])


def test_as_a_reward_of_captions_it_requires_what_the_source_shows():
    values = graded(pictures([TWO]), ["any"], pictures([TWO, ONE]))
    assert values.tolist() == pytest.approx([1.5, 5 / 10])


def test_what_it_can_not_judge_is_said():
    reward = WeightedSum({"judge": (1.0, graded)})
    with pytest.raises(RewardError, match=r"judge.*48x48, got .*64"):
        reward([torch.rand(3, 64, 64)], ["a"], torch.rand(1, 3, 48, 48))

    class Unknown:
        text = "a"

    with pytest.raises(RewardError, match="the embedded world's prompts"):
        reward([], ["a"], torch.rand(1, 3, 48, 48), [Unknown()])


def test_the_tags_of_geneval_are_six():
    assert "exhaustive" not in TAGS and len(TAGS) == 6
