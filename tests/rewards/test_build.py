"""Rewards by name: the built-in ones, a function of the user's, and what is wrong before any
work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uae.rewards.build import (
    KNOWN,
    backbones_of,
    build_reward,
    check_rewards,
    check_rewards_of_prompts,
)
from uae.similarity.backbones import load_backbone
from uae.world.language import exhaustive_caption
from uae.world.scene import render_batch, scene_at

SCENES = [scene_at("test", i, with_word=False, num_objects=3) for i in range(2)]
IMAGES = torch.from_numpy(render_batch(SCENES))


def test_all_by_name_and_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_rewards.py").write_text(
        "def brightness(sources, captions, reconstructions):\n    return "
        "reconstructions.mean((1, 2, 3))\nlimit = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    weights = {
        "clip": 0.5,
        "image_text": 0.25,
        "clip_score": 0.125,
        "ssim": 0.0,
        "objects": 0.0,
        "my_rewards:brightness": 0.25,
    }
    check_rewards(weights, "tiny")
    assert backbones_of(weights) == ["clip"] and backbones_of({"image_text": 1.0}) == ["clip"]
    assert backbones_of({"clip_score": 1.0, "dinov2": 0.0}) == ["clip", "dinov2"]
    reward = build_reward(
        weights, {name: load_backbone(name, "tiny") for name in backbones_of(weights)}
    )
    total = reward(list(IMAGES), [exhaustive_caption(scene) for scene in SCENES], IMAGES)
    parts = reward.breakdown
    assert parts.keys() == weights.keys()
    torch.testing.assert_close(total, sum(weights[name] * parts[name] for name in weights))
    torch.testing.assert_close(parts["clip"], torch.ones(2))
    torch.testing.assert_close(parts["clip_score"], parts["image_text"])  # its own source
    torch.testing.assert_close(parts["my_rewards:brightness"], IMAGES.mean((1, 2, 3)))
    for path in ("my_rewards:limit", "my_rewards:none", "no_such_module:f", ":f"):
        with pytest.raises(ValueError, match="expected"):
            check_rewards({path: 1.0}, "tiny")
    with pytest.raises(ValueError, match="did you mean 'objects'"):
        check_rewards({"object": 1.0}, "tiny")


def test_rewards_that_need_a_source_are_refused_where_prompts_are_painted():
    allowed = {"clip_score": 1.0, "caption_likelihood": 1.0, "ocr": 0.5, "judge": 1.0}
    allowed |= {"my_rewards:brightness": 1.0}
    check_rewards_of_prompts(allowed, is_worlds=True)
    for name in set(KNOWN) - set(allowed):
        with pytest.raises(ValueError, match=f"^rewards {name}: expected rewards of prompt and"):
            check_rewards_of_prompts({name: 0.0} | allowed, is_worlds=True)
    with pytest.raises(ValueError, match=r"^rewards clip, ssim: "):
        check_rewards_of_prompts({"clip": 1.0, "ocr": 1.0, "ssim": 0.0}, is_worlds=False)
    with pytest.raises(ValueError, match=r"^reward judge: .*--prompts world"):
        check_rewards_of_prompts({"judge": 1.0}, is_worlds=False)
