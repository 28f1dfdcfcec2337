"""A trajectory's two segments: one advantage, one length, and each half alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from uae.config import CaptionSettings
from uae.rl.config import TrainConfig
from uae.rl.losses import Objective, action_weights
from uae.rl.segments import trained_segments
from uae.types import Captions, Reconstructions, Rollout


def unused(*args, **kwargs):
    pytest.fail("only what was sampled is cut into segments")


NAMES = ("caption", "answer", "reconstruct", "generate", "begin_training", "save_pretrained")
METHODS = dict.fromkeys(NAMES, unused)
SCORING = {"evaluate": unused, "device": None, "named_trainable_parameters": unused}
CAPTIONER, PAINTER = SimpleNamespace(**SCORING), SimpleNamespace(**SCORING, of="pictures")
MODEL = SimpleNamespace(
    family="any", captioning=None, decoding=None, encoder=CAPTIONER, decoder=PAINTER, **METHODS
)
CONFIG = TrainConfig(captioning=CaptionSettings(max_new_tokens=6), objective=Objective(kl_coef=0.5))


@dataclass
class Anything:
    def select(self, index):
        return self


def rollout(lengths: list[int], width: int) -> Rollout:
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    zeros = torch.zeros(mask.shape)
    return Rollout(zeros.long(), zeros, mask, Anything())


def trajectories(
    per_caption: int, with_image: bool = True
) -> tuple[Captions, Reconstructions, torch.Tensor]:
    """Two images, two captions each of 1, 2, 3, 4 tokens; pictures of 10 tokens."""
    text = rollout([1, 2, 3, 4], 4)
    image = rollout([10] * 4 * per_caption, 10) if with_image else None
    captions = Captions(["a"] * 4, text, 2, torch.zeros(4, dtype=torch.bool))
    images = torch.zeros(4 * per_caption, 3, 2, 2)
    rewards = torch.arange(4.0 * per_caption).square().view(2, 2, per_caption)
    return captions, Reconstructions(images, per_caption, image), rewards


@pytest.mark.parametrize("normalization", ["grpo", "dapo", "dr_grpo"])
def test_both_segments_share_one_trajectory(normalization):
    config = replace(CONFIG, objective=Objective(normalization=normalization))
    text_segment, image_segment = trained_segments(MODEL, *trajectories(1), config)
    assert (text_segment.policy, image_segment.policy) == (CAPTIONER, PAINTER)
    assert torch.equal(text_segment.advantages_B, image_segment.advantages_B)
    assert text_segment.lengths_B.tolist() == image_segment.lengths_B.tolist() == [11, 12, 13, 14]
    weights = [
        action_weights(s.rollout.mask, config.objective, s.counts, s.lengths_B).sum(1)
        for s in (text_segment, image_segment)
    ]
    expected = {
        "grpo": [1 / 4] * 4,  # a mean over the trajectory, then over the four
        "dapo": [n / 50 for n in (11, 12, 13, 14)],
        "dr_grpo": [n / (4 * (6 + 10)) for n in (11, 12, 13, 14)],
    }[normalization]
    assert (weights[0] + weights[1]).tolist() == pytest.approx(expected)


def test_several_pictures_of_a_caption_are_compared_with_each_other():
    text_segment, image_segment = trained_segments(MODEL, *trajectories(3), CONFIG)
    assert text_segment.lengths_B.tolist() == [11, 12, 13, 14]
    assert image_segment.lengths_B.tolist() == [n for n in (11, 12, 13, 14) for _ in range(3)]
    assert image_segment.advantages_B.view(4, 3).sum(1).abs().max() < 1e-5
    assert text_segment.advantages_B.view(2, 2).sum(1).abs().max() < 1e-5
    assert image_segment.counts.num_sequences == 12


@pytest.mark.parametrize(("caption_weight", "image_weight"), [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_either_half_alone(caption_weight: float, image_weight: float):
    config = replace(
        CONFIG, caption_weight=caption_weight, image_weight=image_weight, image_kl_coef=0.1
    )
    segments = trained_segments(MODEL, *trajectories(1), config)
    assert {s.name: s.weight for s in segments} == {
        name: weight
        for name, weight in (("rl", caption_weight), ("rl_image", image_weight))
        if weight
    }
    if len(segments) == 1:  # then its own actions are the whole trajectory
        assert torch.equal(segments[0].lengths_B, segments[0].rollout.mask.sum(1).float())
    assert {s.name: s.objective.kl_coef for s in segments if s.name == "rl_image"} in (
        {},
        {"rl_image": 0.1},
    )
    assert all(s.objective.kl_coef == 0.5 for s in segments if s.name == "rl")


def test_a_frozen_decoder_leaves_the_captions_alone():
    (text_segment,) = trained_segments(MODEL, *trajectories(1, with_image=False), CONFIG)
    assert text_segment.lengths_B.tolist() == [1, 2, 3, 4] and text_segment.counts.max_length == 6


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="caption-weight and image-weight: nothing is learnt"):
        TrainConfig(caption_weight=0.0, image_weight=0.0)
