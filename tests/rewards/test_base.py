"""Weighted sums with a breakdown, and failures that stop the run."""

import pytest
import torch
from einops import rearrange
from torch import Tensor

from uae.rewards.base import RewardError, WeightedSum, takes_prompts
from uae.rl.diagnostics import reward_metrics

P, G, K = 2, 3, 2
SOURCES, RECONSTRUCTIONS = torch.rand(P, 3, 8, 8), torch.rand(P * G * K, 3, 8, 8)
CAPTIONS = ["dot"] * (P * G)


def brightness(sources: Tensor, captions: list[str], reconstructions: Tensor) -> Tensor:
    return reconstructions.mean(dim=(1, 2, 3))


def caption_length(sources: Tensor, captions: list[str], reconstructions: Tensor) -> Tensor:
    return torch.tensor([float(len(text)) for text in captions]).repeat_interleave(K)


def test_weighted_sum_by_hand():
    reward = WeightedSum(
        {
            "bright": (2.0, brightness),
            "length": (-0.1, caption_length),
            "held_out": (0.0, brightness),
        }
    )
    total = reward(SOURCES, CAPTIONS, RECONSTRUCTIONS)
    expected = 2 * RECONSTRUCTIONS.mean(dim=(1, 2, 3)) - 0.1 * 3
    torch.testing.assert_close(total, expected)
    assert list(reward.breakdown) == ["bright", "length", "held_out"]
    torch.testing.assert_close(reward.breakdown["bright"], RECONSTRUCTIONS.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(reward.breakdown["length"], torch.full((P * G * K,), 3.0))


def test_weighted_sum_is_differentiable_and_its_log_is_not():
    images = RECONSTRUCTIONS.clone().requires_grad_()
    reward = WeightedSum({"bright": (2.0, brightness)})
    reward(SOURCES, CAPTIONS, images).sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 2 / (3 * 8 * 8)))
    assert not reward.breakdown["bright"].requires_grad


def raising(*args):
    raise KeyError("no such colour")


BROKEN = {
    "raising": (raising, r"reward broken raised KeyError: 'no such colour'"),
    "wrong shape": (lambda s, c, r: torch.zeros(P, G, K), r"shape \(12,\).*got \(2, 3, 2\)"),
    "per caption": (lambda s, c, r: torch.zeros(P * G), r"got \(6,\)"),
    "one column": (lambda s, c, r: torch.zeros(12, 1), r"shape \(12,\).*got \(12, 1\)"),
    "a mean": (lambda s, c, r: torch.tensor(0.5), r"shape \(12,\).*got \(\)"),
    "nothing": (lambda s, c, r: None, "got NoneType"),
    "complex": (
        lambda s, c, r: torch.zeros(12, dtype=torch.complex64),
        "expected real values, got torch.complex64",
    ),
    "too large for fp32": (
        lambda s, c, r: torch.full((12,), 1e300, dtype=torch.float64),
        "got inf",
    ),
    "not a tensor": (lambda s, c, r: [0.0] * len(r), "got list"),
    "nan": (
        lambda s, c, r: torch.tensor([0.0] * 11 + [torch.nan]),
        r"got nan for reconstruction 11 \(1 of 12",
    ),
    "infinite": (lambda s, c, r: torch.full((12,), torch.inf), "got inf"),
}


NUMBERS = [
    torch.bool,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float64,
]


@pytest.mark.parametrize("dtype", NUMBERS)
def test_truth_values_and_counts_are_numbers(dtype: torch.dtype):
    """Two of every four reconstructions are bright: what is logged and what is learnt from are fp32
    means of them."""
    is_bright = torch.arange(P * G * K) % 4 < 2
    reward = WeightedSum(
        {"bright": (0.5, lambda s, c, r: is_bright.to(dtype)), "half": (0.5, brightness)}
    )
    total = reward(SOURCES, CAPTIONS, torch.full((P * G * K, 3, 8, 8), 0.5))
    assert total.tolist() == [0.75, 0.75, 0.25, 0.25] * 3
    assert total.dtype == reward.breakdown["bright"].dtype == torch.float32
    metrics = reward_metrics(rearrange(total, "(p g k) -> p g k", p=P, g=G), reward.breakdown)
    assert metrics["reward/bright"] == 0.5 and metrics["reward/total"] == 0.5
    assert metrics["reward/group_std"] == pytest.approx(12**-0.5)  # of 3/4, 1/4, 3/4


@pytest.mark.parametrize("kind", BROKEN)
def test_a_failing_reward_stops_with_its_name(kind):
    broken, message = BROKEN[kind]
    reward = WeightedSum({"fine": (1.0, brightness), "broken": (0.5, broken)})
    with pytest.raises(RewardError, match=message) as raised:
        reward(SOURCES, CAPTIONS, RECONSTRUCTIONS)
    assert "reward broken" in str(raised.value)
    if kind == "raising":
        assert isinstance(raised.value.__cause__, KeyError)


class Known:
    """A prompt of which more is known than its text."""

    text, brightness = "dot", 0.25


def near_brightness(sources, captions, reconstructions, prompts=()):
    targets = torch.tensor([prompt.brightness for prompt in prompts]).repeat_interleave(K)
    return -(reconstructions.mean(dim=(1, 2, 3)) - targets).abs()


def test_prompts_are_given_to_those_that_ask_for_them():
    """And there are no sources then; functions of three parameters need not know."""
    images = torch.full((P * K, 3, 8, 8), 0.5)
    reward = WeightedSum({"near": (1.0, near_brightness), "bright": (0.5, brightness)})
    total = reward([], ["dot"] * P, images, [Known()] * P)
    assert reward.breakdown["near"].tolist() == [-0.25] * (P * K)
    assert total.tolist() == [0.0] * (P * K)
    with pytest.raises(ValueError, match=r"got 0, 2 and 4"):
        reward([], ["dot"] * P, images)


def test_who_asks_for_prompts():
    class Judge:
        def __call__(self, sources, captions, reconstructions, *, prompts):
            return reconstructions.mean((1, 2, 3))

    assert takes_prompts(Judge()) and takes_prompts(near_brightness)
    # captions by another name, which is no fourth parameter
    assert not takes_prompts(lambda images, prompts, paintings: paintings)
    assert not takes_prompts(lambda *images, **others: images)
    assert not takes_prompts(brightness) and not takes_prompts(dict)


def test_group_sizes_must_fit():
    reward = WeightedSum({"bright": (1.0, brightness)})
    with pytest.raises(ValueError, match=r"got 2, 5 and 12"):
        reward(SOURCES, CAPTIONS[:5], RECONSTRUCTIONS)
    with pytest.raises(ValueError, match="at least one reward"):
        WeightedSum({})
