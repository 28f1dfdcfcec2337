"""How much captions say, and how much of it is true."""

import random

import pytest

from tests.world.perfect import Perfect, recolored
from uae.world.captions import (
    caption_quality,
    captions_by_instruction,
    level_of,
    true_at_the_same_level,
)
from uae.world.language import (
    INSTRUCTIONS,
    LEVELS,
    caption,
)
from uae.world.scene import (
    Object,
    Scene,
    Word,
    first_scenes,
    scene_at,
)


def test_caption_quality_by_hand():
    scene = Scene(
        "white",
        (
            Object(0, "circle", "red", "small"),
            Object(4, "square", "blue", "large"),
            Object(8, "ring", "pink", "small"),
        ),
        Word(2, "cat"),
    )
    texts = [
        "a tiny red circle top-left , a green square center",
        "a blue square and other shapes",
        "",
    ]
    quality = caption_quality(texts, [scene] * 3, [True, False, False])
    assert quality["tokens"] == pytest.approx((10 + 6 + 0) / 3)
    assert quality["precision"] == pytest.approx(200 / 3)  # the green square is wrong
    assert quality["recall"] == pytest.approx(200 / 9)
    assert quality["recall_complete"] == pytest.approx(100 / 9)
    assert quality["small_recall"] == pytest.approx(100 / 6)
    assert quality["truncated"] == quality["empty"] == pytest.approx(100 / 3)
    shares = [quality["levels"][level] for level in ("exhaustive", "salient", "gist")]
    assert shares == pytest.approx([100 / 3] * 3)


def test_levels_are_told_from_captions():
    scenes = [scene_at("train", i, num_objects=4) for i in range(50)]
    for level in LEVELS:
        assert {
            level_of(caption(scene, level, random.Random(i))) for i, scene in enumerate(scenes)
        } == {level}


def test_each_instruction_is_asked():
    model = Perfect()
    by_name = captions_by_instruction(model, first_scenes("test", 4))
    assert model.instructions == list(INSTRUCTIONS.values()) and set(by_name) == set(INSTRUCTIONS)
    assert by_name["brief"]["recall_complete"] == 100


def test_true_captions_say_as_much_as_the_models_own():
    # no fewer objects than 3: naming all is not `salient`
    scenes = [scene_at("test", i, num_objects=3) for i in range(40)]
    false = [
        caption(recolored(s), LEVELS[i % len(LEVELS)], random.Random(i))
        for i, s in enumerate(scenes)
    ]
    true = true_at_the_same_level(false, scenes)
    assert [level_of(t) for t in true] == [level_of(t) for t in false]
    assert caption_quality(true, scenes)["precision"] == 100
