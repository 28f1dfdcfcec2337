"""Pictures that are compared with each other: the noise that they start from, and which of their
steps are random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.rl.tiny_run import build_model, config, reward
from uae.config import DecodeSettings
from uae.models.llm_diffusion import LLMDiffusion
from uae.rl.advantages import group_advantages
from uae.rl.train import train
from uae.world.data import SceneImages

TEXTS = ["a red circle", "two small blue squares"]
SDE = DecodeSettings(num_steps=4, sampler="sde", window_size=2)
SHARED = replace(SDE, shared_noise=True)
K = 4


def paths(model: LLMDiffusion, settings: DecodeSettings, step: int = 0) -> Tensor:
    """``[texts, K, states, c, h, w]`` latents along the random steps."""
    rollout = model.generate(TEXTS, settings, group_size=K, step=step).rollout
    assert rollout is not None
    return rollout.actions.unflatten(0, (len(TEXTS), K))


def test_shared_noise_is_one_for_the_pictures_of_a_text():
    model = build_model()
    own, shared = (paths(model, settings)[:, :, 0] for settings in (SDE, SHARED))
    assert all(torch.equal(shared[:, 0], shared[:, k]) for k in range(1, K))
    assert not torch.equal(shared[0, 0], shared[1, 0])
    assert not any(torch.equal(own[:, 0], own[:, k]) for k in range(1, K))
    ends = paths(model, SHARED)[:, :, -1]
    assert not any(torch.equal(ends[:, 0], ends[:, k]) for k in range(1, K))  # steps draw their own


def test_single_pictures_and_the_ode_do_not_depend_on_it():
    model = build_model()
    for settings in (SDE, replace(SDE, sampler="ode")):
        size = 1 if settings.sampler == "sde" else K
        images = [
            model.generate(TEXTS, replace(settings, shared_noise=is_shared), group_size=size).images
            for is_shared in (False, True)
        ]
        assert torch.equal(*images)


def gradient(model: LLMDiffusion, settings: DecodeSettings, decides: str, step: int) -> Tensor:
    """Of the policy-gradient loss, of one layer, where a reward is decided by the ``start`` noise
    or by what the ``window`` drew."""
    rollout = model.generate(TEXTS, settings, group_size=K, step=step).rollout
    assert rollout is not None
    start = rollout.actions[:, 0].flatten(1).sum(1)
    drawn = (rollout.actions[:, -1] - rollout.actions[:, 0]).flatten(1)[:, 0]
    rewards = (start if decides == "start" else drawn).view(len(TEXTS), K)
    advantages = group_advantages(rewards, scale="none").flatten()
    layer = model.decoder.transformer.proj_out.weight
    log_probs = model.decoder.evaluate(rollout, with_kl=False).log_probs
    (grad,) = torch.autograd.grad((advantages[:, None] * log_probs).mean(), layer)
    return grad.flatten()


@pytest.fixture
def decoder() -> LLMDiffusion:
    model = build_model()
    model.begin_training(0, captions=False, decoding=SDE)
    return model


@pytest.mark.slow
def test_a_reward_that_the_start_noise_decides_teaches_nothing(decoder: LLMDiffusion):
    """Exactly nothing where it is shared; where it is not, nothing on average, but never."""
    for step in range(3):
        assert not gradient(decoder, SHARED, "start", step).any()
    own = torch.stack([gradient(decoder, SDE, "start", step) for step in range(24)])
    assert own.any(1).all()
    mean, error = own.mean(0), own.std(0) / len(own) ** 0.5
    assert (mean.abs() < 2 * error).float().mean() > 0.9  # as of a mean of 0, where 0.95 are


@pytest.mark.slow
def test_shared_noise_has_the_smaller_variance_where_the_window_decides(decoder: LLMDiffusion):
    variance = {
        is_shared: torch.stack(
            [
                gradient(decoder, replace(SDE, shared_noise=is_shared), "window", step)
                for step in range(24)
            ]
        )
        .var(0)
        .sum()
        .item()
        for is_shared in (False, True)
    }
    assert variance[True] < variance[False]


def test_the_window_moves_from_step_to_step():
    settings = config(
        1,
        decoding=SDE,
        window_interval=2,
        caption_weight=0.0,
        group_size=1,
        reconstructions_per_caption=2,
    )
    starts = [settings.decoding_at(step).window_start for step in range(9)]
    assert starts == [0, 0, 2, 2, 0, 0, 2, 2, 0]
    three = replace(settings, window_interval=1, decoding=replace(SDE, num_steps=5))
    assert [three.decoding_at(step).window_start for step in range(4)] == [0, 2, 4, 0]
    no_noise_in_the_last = replace(three, decoding=replace(SDE, num_steps=5, sampler="cps"))
    assert [no_noise_in_the_last.decoding_at(s).window_start for s in range(3)] == [0, 2, 0]
    later = replace(three, decoding=replace(SDE, num_steps=5, window_start=1))
    assert [later.decoding_at(step).window_start for step in range(3)] == [1, 3, 1]
    assert replace(settings, window_interval=None).decoding_at(7) == SDE


@pytest.mark.parametrize("decoding", [DecodeSettings(), replace(SDE, window_size=None)])
def test_a_window_that_is_none_does_not_move(decoding: DecodeSettings):
    with pytest.raises(ValueError, match=r"window-interval: expected decoding\.sampler sde or cps"):
        config(1, decoding=decoding, window_interval=1)


def test_a_run_trains_where_its_window_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    starts = []
    original = LLMDiffusion.reconstruct

    def reconstruct(self, captions, settings, **draws):
        starts.append(settings.window_start)
        return original(self, captions, settings, **draws)

    monkeypatch.setattr(LLMDiffusion, "reconstruct", reconstruct)
    settings = config(
        3,
        decoding=SHARED,
        window_interval=1,
        caption_weight=0.0,
        group_size=1,
        reconstructions_per_caption=2,
        use_bf16=False,
    )
    model = build_model()
    model.begin_training(0, captions=False, decoding=SDE)
    train(model, reward(), SceneImages(), settings, tmp_path, {"model": "test"})
    assert starts == [0, 2, 0]
