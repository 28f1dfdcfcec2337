"""Advantages against numbers worked out by hand."""

import math

import pytest
import torch

from uae.rl.advantages import caption_advantages, group_advantages, reconstruction_advantages


def test_group_std_by_hand():
    # [1, 2, 3, 6]: mean 3, deviations -2 -1 0 3, variance 14/3 with ddof=1.
    std = math.sqrt(14 / 3)
    expected = torch.tensor([[-2.0, -1.0, 0.0, 3.0]]) / (std + 1e-4)
    torch.testing.assert_close(
        group_advantages(torch.tensor([[1.0, 2.0, 3.0, 6.0]])), expected, atol=1e-7, rtol=1e-6
    )


def test_std_epsilon_and_ddof_matter():
    # 0 and 2e-4: std with ddof=1 is sqrt(2)e-4, so A = 1e-4 / (sqrt(2)e-4 + 1e-4) = 0.41421 (ddof=0
    # gives 0.5).
    advantages = group_advantages(torch.tensor([[0.0, 2e-4]]))
    torch.testing.assert_close(
        advantages, torch.tensor([[-0.41421356, 0.41421356]]), atol=1e-6, rtol=0
    )


def test_mean_only_and_batch_scale_by_hand():
    rewards = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    torch.testing.assert_close(
        group_advantages(rewards, "none"), torch.tensor([[-0.5, 0.5], [-1.5, 1.5]])
    )
    std = math.sqrt((4 + 1 + 0 + 9) / 3)  # of 0 1 2 5 about their mean 2
    expected = torch.tensor([[-0.5, 0.5], [-1.5, 1.5]]) / (std + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, "batch"), expected)


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_tied_group_is_exactly_zero(scale):
    # In double the mean of three 0.1 is not 0.1, so subtracting it leaves dust.
    rewards = torch.tensor([[0.1, 0.1, 0.1], [0.0, 0.5, 1.0]], dtype=torch.float64)
    advantages = group_advantages(rewards, scale)
    assert advantages[0].tolist() == [0.0, 0.0, 0.0]
    assert advantages[1, 2] > 0.4


def test_nearly_tied_group_is_not_treated_as_tied():
    rewards = torch.tensor([[0.7, 0.7 + 6e-8, 0.7, 0.7]])
    assert group_advantages(rewards)[0, 1] > 0


def test_clamp_holds_both_ends():
    rewards = torch.tensor([[-10.0, 0.0, 0.0, 10.0]])
    assert group_advantages(rewards, "none", clamp=5.0).tolist() == [[-5.0, 0.0, 0.0, 5.0]]


def test_caption_is_worth_the_mean_over_its_reconstructions():
    rewards = torch.tensor([[[0.0, 4.0], [3.0, 5.0]]])  # means 2 and 4
    assert caption_advantages(rewards, "none").tolist() == [[-1.0, 1.0]]


def test_reconstruction_is_compared_within_its_caption():
    rewards = torch.tensor([[[0.0, 4.0], [3.0, 5.0]]])
    assert reconstruction_advantages(rewards, "none").tolist() == [[[-2.0, 2.0], [-1.0, 1.0]]]
    std = math.sqrt(8)
    expected = torch.tensor(
        [[[-2 / (std + 1e-4), 2 / (std + 1e-4)], [-1 / (2**0.5 + 1e-4), 1 / (2**0.5 + 1e-4)]]]
    )
    torch.testing.assert_close(reconstruction_advantages(rewards), expected)


def test_single_reconstruction_shares_the_trajectory_advantage():
    rewards = torch.tensor([[[1.0], [2.0], [6.0]]])
    advantages = reconstruction_advantages(rewards, "none")
    assert advantages.tolist() == [[[-2.0], [-1.0], [3.0]]]
    assert torch.equal(advantages[..., 0], caption_advantages(rewards, "none"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_reward_is_named(value):
    rewards = torch.zeros(3, 4)
    rewards[2, 1] = value
    with pytest.raises(ValueError, match=r"reward at image 2, caption 1 is (nan|inf|-inf)"):
        group_advantages(rewards)
    rewards_PGK = torch.zeros(2, 2, 3)
    rewards_PGK[1, 0, 2] = value
    with pytest.raises(ValueError, match="image 1, caption 0, reconstruction 2"):
        caption_advantages(rewards_PGK)


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_group_of_one_is_refused(scale):
    with pytest.raises(ValueError, match=r"group of one.*group_size to 2"):
        group_advantages(torch.rand(4, 1), scale)
    with pytest.raises(ValueError, match="group of one"):
        reconstruction_advantages(torch.rand(4, 1, 1), scale)
    with pytest.raises(ValueError, match="group of one"):
        caption_advantages(torch.rand(4, 1, 2), scale)
