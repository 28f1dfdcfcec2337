"""Training images and prompts of the world."""

from __future__ import annotations

import torch

from uae.world.data import SceneImages, ScenePrompts
from uae.world.language import exhaustive_caption
from uae.world.prompts import EXHAUSTIVE, TAGS
from uae.world.scene import split_of


def test_scenes_are_never_the_same_twice_and_the_probe_is_held_out():
    source = SceneImages()
    first, second = torch.stack(source.batch(0, 8)), torch.stack(source.batch(1, 8))
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.stack(SceneImages().batch(0, 8)))
    assert torch.stack(source.probe(4)).shape == (4, 3, 48, 48)


def test_prompts_are_those_of_training_scenes_the_tags_in_turn():
    source = ScenePrompts(seed=3)
    prompts = [prompt for step in range(6) for prompt in source.batch(step, 8)]
    assert [prompt.tag for prompt in prompts] == [TAGS[i % 6] for i in range(48)]
    assert {split_of(prompt.scene) for prompt in prompts} == {"train"}
    counts = [len(prompt.scene.objects) for prompt in prompts if prompt.tag == "counting"]
    assert set(counts) == {2, 3, 4, 5}
    assert len({prompt.scene for prompt in prompts}) == 48


def test_a_batch_of_prompts_is_a_function_of_the_step_alone():
    source = ScenePrompts(seed=3, exhaustive_share=0.25)
    last = source.batch(2, 8)
    assert last == ScenePrompts(seed=3, exhaustive_share=0.25).batch(2, 8) != source.batch(1, 8)
    assert last != ScenePrompts(seed=4, exhaustive_share=0.25).batch(2, 8)
    assert last == source.batch(1, 12)[4:]  # the 17th to the 24th


def test_exhaustive_captions_are_mixed_in_evenly():
    prompts = ScenePrompts(exhaustive_share=0.25).batch(0, 48)
    assert [p.tag == EXHAUSTIVE for p in prompts] == [False, False, False, True] * 12
    short = [prompt for prompt in prompts if prompt.tag != EXHAUSTIVE]
    assert short == ScenePrompts().batch(0, 36)
    long = [prompt for prompt in prompts if prompt.tag == EXHAUSTIVE]
    assert [p.text for p in long] == [exhaustive_caption(p.scene) for p in long]
    assert {split_of(p.scene) for p in long} == {"train"} and any(p.scene.word for p in long)
    assert {p.tag for p in ScenePrompts(exhaustive_share=1.0).batch(0, 9)} == {EXHAUSTIVE}


def test_the_probe_holds_prompts_of_validation_scenes():
    probe = ScenePrompts(exhaustive_share=0.5).probe(16)
    assert len(probe) == 16 and {split_of(prompt.scene) for prompt in probe} == {"validation"}
