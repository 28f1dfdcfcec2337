"""Signs of a gamed reward, on texts, pictures and histories made for it."""

from __future__ import annotations

import warnings

import pytest
import torch

from uae.rl.diagnostics import WINDOW, HeldOutAlarm, caption_signs, image_signs


def test_captions_that_repeat_or_transcribe():
    assert caption_signs(["a red ring on a blue wall", ""]) == {
        "caption/repeated_frac": 0.0,
        "caption/transcribed_frac": 0.0,
    }
    signs = caption_signs(["a b c a b c a b c"])  # seven trigrams, three of them different
    assert signs["caption/repeated_frac"] == pytest.approx(4 / 7)
    assert caption_signs(['"STOP" it'])["caption/transcribed_frac"] == pytest.approx(6 / 9)
    assert caption_signs(["the word sun left"])["caption/transcribed_frac"] == pytest.approx(8 / 17)


def test_pictures_full_of_edges_or_empty_of_colour():
    flat = torch.full((2, 3, 8, 8), 0.5)
    assert image_signs(flat) == {"image/edge_density": 0.0, "image/color_entropy": 0.0}
    board = torch.zeros(1, 3, 8, 8)
    board[:, :, ::2, ::2] = board[:, :, 1::2, 1::2] = 1.0
    signs = image_signs(board)
    assert signs["image/edge_density"] == 1.0 and signs["image/color_entropy"] == pytest.approx(1.0)


def history(reward: float, held_out: float) -> list[dict[str, float]]:
    """Changes per step, with some noise."""
    noise = torch.randn(2 * WINDOW, generator=torch.Generator().manual_seed(0)).mul(0.01).tolist()
    return [
        {"reward/total": reward * i + e, "reward/dinov2": held_out * i - e}
        for i, e in enumerate(noise)
    ]


def test_a_held_out_reward_that_falls_is_named_once():
    alarm = HeldOutAlarm(["dinov2"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for metrics in history(0.01, -0.01) * 2:
            alarm.observe(metrics)
    assert ["reward/dinov2" in str(warning.message) for warning in caught] == [True]


@pytest.mark.parametrize("trend", [(0.01, 0.01), (0.0, -0.01), (0.01, 0.0)])
def test_other_histories_are_quiet(trend):
    alarm = HeldOutAlarm(["dinov2"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metrics in history(*trend):
            alarm.observe(metrics)


def test_a_resumed_run_remembers():
    past = history(0.01, -0.01)
    alarm = HeldOutAlarm(["dinov2"], past[:-1])
    with pytest.warns(UserWarning, match="held out"):
        alarm.observe(past[-1])


def test_rewards_of_prompts_are_watched_by_their_own_names():
    metrics = [{f"prompts/{name}": value for name, value in row.items()} for row in history(1, -1)]
    alarm = HeldOutAlarm(["dinov2"], metrics[:-1], "prompts/")
    with pytest.warns(UserWarning, match=r"^prompts/reward/total rises while prompts/"):
        alarm.observe(metrics[-1])
