"""Painting learns from prompts, in the very loop of captions: both families, alone, resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.rl.tiny_run import SMALL_IMAGES, build_model, build_small_janus, config
from uae.config import DecodeSettings
from uae.models.janus import Janus
from uae.models.llm_diffusion import LLMDiffusion
from uae.rewards.base import WeightedSum
from uae.rl.config import TrainConfig
from uae.rl.diagnostics import HeldOutAlarm
from uae.rl.rollout import roll_out, sub_batches
from uae.rl.segments import trained_segments
from uae.rl.train import train
from uae.types import Prompt, PromptSource
from uae.utils.metrics import read_metrics
from uae.world.data import SceneImages, ScenePrompts
from uae.world.prompts import ScenePrompt

DECODING = {
    "umm1": DecodeSettings(num_steps=3, sampler="sde", window_start=1, window_size=1),
    "umm2": replace(SMALL_IMAGES, guidance_scale=2.0),
}
ALONE = {"caption_weight": 0.0, "group_size": 1, "reconstructions_per_caption": 3}
FAMILIES = pytest.mark.parametrize("family", DECODING)


def settings(family: str, num_steps: int, **changes) -> TrainConfig:
    return config(num_steps, decoding=DECODING[family], **ALONE | changes)


def build(family: str) -> LLMDiffusion | Janus:
    model = build_model() if family == "umm1" else build_small_janus()
    model.begin_training(0, captions=False, decoding=DECODING[family])
    return model


def redness(sources, captions, reconstructions):
    return reconstructions[:, 0].mean((1, 2))


def of_prompts(sources, captions, reconstructions, prompts: Sequence[Prompt] = ()):
    """Redness, of what is the world's own."""
    assert not sources and [prompt.text for prompt in prompts] == captions
    assert all(isinstance(prompt, ScenePrompt) for prompt in prompts)
    return redness(sources, captions, reconstructions)


def reward() -> WeightedSum:
    return WeightedSum({"of_prompts": (1.0, of_prompts), "redness": (0.0, redness)})


def run(folder: Path, family: str, config: TrainConfig, until: int | None = None):
    model, source = build(family), ScenePrompts(exhaustive_share=0.5)
    train(model, reward(), source, config, folder, {"model": "test"}, until=until)
    return model


@FAMILIES
def test_painting_learns_and_nothing_is_captioned(tmp_path: Path, family: str):
    model = run(tmp_path, family, settings(family, 1, use_bf16=False))
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["rl_image/log_prob_gap"] < 1e-5 and metrics["rl/grad_norm"] > 0
    assert metrics["reward/group_std"] > 0 and metrics["reward/of_prompts"] > 0
    assert metrics["reward/total"] == metrics["reward/redness"]
    assert 0 < metrics["reward/fixed_captions"] < 1
    of_captions = ("caption/", "rl/loss", "time/tokens_per_sec")
    assert not [name for name in metrics if name.startswith(of_captions)]
    start = dict(build(family).named_parameters())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    parts = ("decoder.transformer",) if family == "umm1" else ("model.model.", "model.lm_head")
    assert moved and all(name.startswith(parts) for name in moved)


@pytest.mark.parametrize("family", ["umm1", pytest.param("umm2", marks=pytest.mark.slow)])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, family: str):
    run_settings = settings(family, 3, reconstructions_per_caption=2, images_per_step=1)
    whole = run(tmp_path / "whole", family, run_settings)
    run(tmp_path / "parts", family, run_settings, until=1)
    parts = run(tmp_path / "parts", family, run_settings)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    untimed = [[{k: v for k, v in row.items() if k[:5] != "time/"} for row in log] for log in rows]
    assert untimed[0] == untimed[1] and len(untimed[0]) == 3


@FAMILIES
def test_the_pictures_of_a_prompt_are_compared_with_each_other(family: str):
    model, run_settings = build(family), settings(family, 1)
    batch = ScenePrompts().batch(0, 2)
    (sub_batch,) = sub_batches(batch, run_settings)
    captions, reconstructions = roll_out(model, sub_batch, 0)
    assert captions is None and len(reconstructions.images) == 6
    # the second prompt's pictures are better than the first's: that teaches nothing
    rewards_PGK = torch.tensor([[[0.0, 1.0, 2.0]], [[10.0, 11.0, 12.0]]])
    (segment,) = trained_segments(model, captions, reconstructions, rewards_PGK, run_settings)
    assert segment.name == "rl_image" and segment.policy is model.decoder
    expected = [-1.0, 0.0, 1.0] * 2  # over their standard deviation, 1
    assert segment.advantages_B.tolist() == pytest.approx(expected, abs=1e-3)
    assert segment.lengths_B.tolist() == [reconstructions.rollout.mask.shape[1]] * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption_weight": 1.0, "group_size": 2}, "caption-weight: expected 0 where prompts"),
        ({"group_size": 2}, "group-size: expected 1 where prompts"),
    ],
)
def test_where_more_than_painting_would_learn_it_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "umm1", settings("umm1", 1, **changes))


def test_sources_of_prompts_and_of_images_are_told_apart():
    assert isinstance(ScenePrompts(), PromptSource)
    assert all(isinstance(prompt, Prompt) for prompt in ScenePrompts().batch(0, 2))
    assert not any(isinstance(image, Prompt) for image in SceneImages().batch(0, 2))


def test_the_alarm_hears_runs_of_prompts():
    quiet = [{"reward/total": 0.1 * i, "reward/redness": -0.1 * i} for i in range(40)]
    with pytest.warns(UserWarning, match="reward/redness, which is held out, falls"):
        HeldOutAlarm(["redness"], quiet[:-1]).observe(quiet[-1])


def test_the_probe_paints_prompts_of_validation_scenes(tmp_path: Path):
    run(tmp_path, "umm1", replace(settings("umm1", 1), images_per_step=1))
    texts = (tmp_path / "probe.json").read_text()
    assert all(f'"{p.text}"' in texts for p in ScenePrompts(exhaustive_share=0.5).probe(16))
