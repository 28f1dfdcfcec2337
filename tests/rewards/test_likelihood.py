"""The model's own understanding as the judge of its painting."""

from __future__ import annotations

import pytest
import torch

from uae.config import CaptionSettings
from uae.models.load import load_model
from uae.rewards.build import build_reward
from uae.world.language import INSTRUCTIONS, exhaustive_caption
from uae.world.scene import render_batch, scene_at

SCENES = [scene_at("test", i, with_word=False) for i in range(4)]
IMAGES = list(torch.from_numpy(render_batch(SCENES)))


@pytest.mark.parametrize("family", ["tiny", "tiny-ar"])
def test_a_caption_is_as_likely_as_when_it_was_drawn(family: str):
    captioner = load_model(family).encoder
    captions = captioner.caption(IMAGES, CaptionSettings(), seed=3)
    rollout = captions.rollout
    expected = (rollout.log_probs * rollout.mask).sum(1) / rollout.mask.sum(1)
    torch.testing.assert_close(
        captioner.log_likelihood(IMAGES, captions.texts, CaptionSettings().instruction),
        expected,
        atol=1e-4,
        rtol=1e-4,
    )


def test_the_picture_that_shows_what_is_said_is_preferred_whatever_is_learnt_meanwhile():
    model = load_model("tiny")
    reward = build_reward({"caption_likelihood": 1.0}, {}, model.encoder, INSTRUCTIONS["detailed"])
    texts = [exhaustive_caption(scene) for scene in SCENES[:2]]
    images = torch.stack(
        [IMAGES[0], IMAGES[1], IMAGES[2], IMAGES[1]]
    )  # two of each caption: first the right one
    right, wrong, wrong_too, right_too = before = reward(IMAGES[2:], texts, images)
    assert right > wrong + 0.5 and right_too > wrong_too + 0.5
    model.encoder.learn(lora_rank=0)
    with torch.no_grad():
        for parameter in model.encoder.named_trainable_parameters().values():
            parameter.mul_(0.9)
    torch.testing.assert_close(reward(IMAGES[2:], texts, images), before)
    assert not model.encoder.log_likelihood(
        list(images[:2]), texts, INSTRUCTIONS["detailed"]
    ).allclose(before[:2])


def test_its_gradient_is_the_slope():
    model = load_model("tiny")
    model.requires_grad_(False)
    reward = build_reward({"caption_likelihood": 1.0}, {}, model.encoder, INSTRUCTIONS["detailed"])
    along = torch.rand(IMAGES[0].shape, generator=torch.Generator().manual_seed(0)) - 0.5
    at = torch.tensor(0.0, requires_grad=True)

    def value(step: torch.Tensor) -> torch.Tensor:
        return reward(
            IMAGES[:1], [exhaustive_caption(SCENES[1])], (IMAGES[0] + step * along)[None]
        )[0]

    value(at).backward()
    slope = (value(torch.tensor(1e-2)) - value(torch.tensor(-1e-2))) / 2e-2
    assert (
        at.grad is not None
        and at.grad.item() == pytest.approx(slope.item(), rel=0.05)
        and slope.abs() > 1e-2
    )


def test_a_captioner_that_can_not_judge_is_refused():
    with pytest.raises(ValueError, match="log_likelihood"):
        build_reward({"caption_likelihood": 1.0}, {}, object())
