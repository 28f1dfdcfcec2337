"""Rewards by name: the built-in ones, a function of the user's, and what is wrong before any
work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uae.rewards.build import backbones_of, build_reward, check_rewards
from uae.rewards.ssim import ssim
from uae.similarity.backbones import load_backbone
from uae.world.language import exhaustive_caption
from uae.world.reward import objects
from uae.world.scene import Scene, render_batch, scene_at

SCENES = [scene_at("test", i, with_word=False, num_objects=3) for i in range(2)]
IMAGES = torch.from_numpy(render_batch(SCENES))


def test_ssim_of_known_pictures():
    noise = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    painted = torch.cat(
        [IMAGES[:1], (IMAGES[:1] + 0.1 * noise[:1]).clamp(0, 1), IMAGES[1:], noise[1:]]
    )
    same, close, same_too, far = ssim(IMAGES, ["a", "b"], painted).tolist()
    assert same == pytest.approx(1, abs=1e-5) == same_too and far < 0.05 and far < close < 1
    flat = torch.full((1, 3, 48, 48), 0.5)
    wanted = (2 * 0.5 * 0.25 + 1e-4) / (
        0.5**2 + 0.25**2 + 1e-4
    )  # of constant pictures only the means differ
    assert ssim(flat, ["a"], flat / 2).item() == pytest.approx(wanted, abs=1e-5)


def test_ssim_takes_any_size_and_has_a_gradient():
    painted = torch.rand(2, 3, 48, 48, requires_grad=True)
    big = torch.nn.functional.interpolate(IMAGES[:1], (96, 96), mode="nearest")[0]
    torch.testing.assert_close(ssim([big], ["a"], painted), ssim(IMAGES[:1], ["a"], painted))
    ssim([big], ["a"], painted).sum().backward()
    assert painted.grad is not None and painted.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="more than 10 pixels"):
        ssim(IMAGES, ["a"], torch.rand(2, 3, 8, 8))


def test_objects_by_hand():
    two = Scene(SCENES[0].background, SCENES[0].objects[:2])
    painted = torch.cat([IMAGES[:1], torch.from_numpy(render_batch([two])), IMAGES[1:], IMAGES[:1]])
    assert objects(IMAGES, ["a", "b"], painted)[:3].tolist() == pytest.approx(
        [1, 2 * 2 / (3 + 2), 1]
    )
    assert objects(IMAGES, ["a", "b"], painted)[3] < 0.5
    with pytest.raises(ValueError, match="48x48"):
        objects([torch.rand(3, 64, 64)], ["a"], painted)


def test_all_by_name_and_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_rewards.py").write_text(
        "def brightness(sources, captions, reconstructions):\n    return "
        "reconstructions.mean((1, 2, 3))\nlimit = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    weights = {
        "clip": 0.5,
        "image_text": 0.25,
        "ssim": 0.0,
        "objects": 0.0,
        "my_rewards:brightness": 0.25,
    }
    check_rewards(weights, "tiny")
    assert backbones_of(weights) == ["clip"] and backbones_of({"image_text": 1.0}) == ["clip"]
    reward = build_reward(
        weights, {name: load_backbone(name, "tiny") for name in backbones_of(weights)}
    )
    total = reward(list(IMAGES), [exhaustive_caption(scene) for scene in SCENES], IMAGES)
    parts = reward.breakdown
    assert parts.keys() == weights.keys()
    torch.testing.assert_close(total, sum(weights[name] * parts[name] for name in weights))
    torch.testing.assert_close(parts["clip"], torch.ones(2))
    torch.testing.assert_close(parts["my_rewards:brightness"], IMAGES.mean((1, 2, 3)))
    for wrong in ("my_rewards:limit", "my_rewards:none", "no_such_module:f", ":f"):
        with pytest.raises(ValueError, match="expected"):
            check_rewards({wrong: 1.0}, "tiny")
    with pytest.raises(ValueError, match="did you mean 'objects'"):
        check_rewards({"object": 1.0}, "tiny")
