"""A joint step: captions are learnt from images, painting from prompts, each as if alone; in one
set of weights (UMM-2) each at its own rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.rl.tiny_run import SMALL_IMAGES, build_model, build_small_janus, config
from uae.config import CaptionSettings, DecodeSettings
from uae.models.janus import Janus
from uae.models.llm_diffusion import LLMDiffusion
from uae.rewards.base import WeightedSum
from uae.rl.config import TrainConfig
from uae.rl.learning import Learning
from uae.rl.rollout import JointSource, captions_alone, painting_alone, sub_batches
from uae.rl.train import train
from uae.types import Batch
from uae.utils.checkpoint import Checkpoint, load_latest
from uae.utils.metrics import read_metrics
from uae.world.data import SceneImages, ScenePrompts

SOURCE = JointSource(SceneImages(), ScenePrompts())
DECODING = {
    "umm1": DecodeSettings(num_steps=3, sampler="sde", window_start=1, window_size=1),
    "umm2": SMALL_IMAGES,
}
FAMILIES = pytest.mark.parametrize("family", DECODING)


def redness(sources, captions, reconstructions):
    return reconstructions[:, 0].mean((1, 2))


def blueness(sources, captions, reconstructions):
    return reconstructions[:, 2].mean((1, 2))


RED, BLUE = WeightedSum({"redness": (1.0, redness)}), WeightedSum({"blueness": (1.0, blueness)})


def settings(family: str, num_steps: int = 1, **changes) -> TrainConfig:
    return replace(
        config(num_steps, decoding=DECODING[family]),
        images_per_step=2,
        group_size=2,
        reconstructions_per_caption=3,
        captioning=CaptionSettings(max_new_tokens=5),
        learning_rate=1e-3,
        decoder_learning_rate=1e-4,
        max_grad_norm=1e9,  # each half's gradient is then its own
        use_bf16=False,
        weight_decay=0.0,
        ema_decay=0.0,
        **changes,
    )


def build(family: str) -> LLMDiffusion | Janus:
    model = build_model() if family == "umm1" else build_small_janus()
    model.begin_training(0, captions=True, decoding=DECODING[family])
    return model


def changes_in(folder: Path, family: str, source, config: TrainConfig) -> dict[str, Tensor]:
    """Of each weight, by one step."""
    model, start = build(family), dict(build(family).named_parameters())
    is_joint = isinstance(source, JointSource)
    red = BLUE if isinstance(source, ScenePrompts) else RED
    train(model, red, source, config, folder, {}, prompt_reward=BLUE if is_joint else None)
    return {name: p.detach() - start[name].detach() for name, p in model.named_parameters()}


@FAMILIES
def test_each_half_learns_as_if_alone_and_at_its_own_rate(tmp_path: Path, family: str):
    joint = settings(family)
    together = changes_in(tmp_path / "joint", family, SOURCE, joint)
    captions = captions_alone(joint)
    assert captions.decoding.temperature == 0  # no luck in a caption's reward
    images = changes_in(tmp_path / "captions", family, SOURCE.images, captions)
    painting = replace(painting_alone(joint), learning_rate=1.0)  # of nothing
    prompts = changes_in(tmp_path / "prompts", family, SOURCE.prompts, painting)
    for name, change in together.items():
        # two changes of one weight are rounded one after the other
        torch.testing.assert_close(change, images[name] + prompts[name], atol=2e-7, rtol=0)
    assert any(images[name].abs().max() > 9e-4 for name in images)
    assert any(0 < prompts[name].abs().max() < 1.1e-4 for name in prompts)
    is_shared = [images[name].any() and prompts[name].any() for name in together]
    assert any(is_shared) == (family == "umm2")


@FAMILIES
def test_its_metrics_tell_the_halves_apart(tmp_path: Path, family: str):
    changes_in(tmp_path, family, SOURCE, settings(family))
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    assert {"reward/redness", "prompts/reward/blueness", "prompts/reward/total"} <= set(metrics)
    assert {"rl/loss", "rl_image/loss", "caption/tokens", "prompts/image/edge_density"} <= set(
        metrics
    )
    assert "reward/blueness" not in metrics and "prompts/caption/tokens" not in metrics
    # 2 images x 2 captions, painted once, and 2 prompts x 3 pictures
    num_images = metrics["time/images_per_sec"] * metrics["time/step"]
    assert num_images == pytest.approx(2 * 2 + 2 * 3)


@pytest.mark.parametrize("family", ["umm2", pytest.param("umm1", marks=pytest.mark.slow)])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, family: str):
    def run(folder: Path, until: int | None = None) -> Mapping[str, Tensor]:
        three = settings(family, 3, save_every=1)
        train(build(family), RED, SOURCE, three, folder, {}, until, prompt_reward=BLUE)
        checkpoint = load_latest(folder / "checkpoints")
        assert checkpoint is not None
        moments = checkpoint.state["optimizer"]["state"]
        flat = {f"{i}.{name}": v for i, state in moments.items() for name, v in state.items()}
        return {**checkpoint.weights["policy"], **flat}

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", until=1)
    parts = run(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_failed_step_takes_the_twins_moments_back(tmp_path: Path, monkeypatch):
    """It fails when all is updated already, as the probe does."""
    given = settings("umm2", 3, probe_every=1)

    def run(folder: Path, until: int | None = None) -> Checkpoint:
        model = build("umm2")
        with nullcontext() if until else pytest.raises(RuntimeError, match="out of luck"):
            train(model, RED, SOURCE, given, folder, {}, until, prompt_reward=BLUE)
        checkpoint = load_latest(folder / "checkpoints")
        assert checkpoint is not None and checkpoint.step == 1
        # painting does not use the head of words
        num_learnt = len(model.named_trainable_parameters())
        assert len(checkpoint.state["optimizer"]["state"]) == 2 * num_learnt - 1
        return checkpoint

    whole = run(tmp_path / "whole", until=1)
    answers = iter([{}])
    monkeypatch.setattr("uae.rl.run.Probe.measure", lambda self: next_or_fail(answers))
    failed = run(tmp_path / "failed")
    for name, value in whole.weights["policy"].items():
        assert torch.equal(value, failed.weights["policy"][name])
    moments = failed.state["optimizer"]["state"]
    for slot, values in whole.state["optimizer"]["state"].items():
        assert all(torch.equal(value, moments[slot][name]) for name, value in values.items())


def next_or_fail(answers: Iterator[dict]) -> dict:
    for answer in answers:
        return answer
    raise RuntimeError("out of luck")


def test_one_rate_for_both_needs_no_twins():
    model = build("umm2")
    assert (
        Learning.of(model, replace(settings("umm2"), decoder_learning_rate=None)).twins.pairs == []
    )
    frozen = build_model()
    frozen.begin_training(0, captions=True, decoding=None)
    assert Learning.of(frozen, settings("umm1")).twins.pairs == []
    painting = painting_alone(settings("umm2"))
    (group,) = Learning.of(model, painting).optimizer.param_groups
    assert group["lr"] == painting.decoder_learning_rate == 1e-4
    learning = Learning.of(model, settings("umm2"))
    for parameter, twin in learning.twins.pairs:
        assert parameter.data_ptr() == twin.data_ptr() and parameter is not twin
    assert [group["lr"] for group in learning.optimizer.param_groups] == [1e-3, 1e-4]


@pytest.mark.parametrize(
    ("batch", "changes", "message"),
    [
        (
            SOURCE.batch(0, 1),
            {"image_weight": 0.0, "decoder_learning_rate": None},
            "image-weight: expected above 0",
        ),
        (SOURCE.batch(0, 1), {"caption_weight": 0.0}, "caption-weight: expected above 0 where im"),
        (SOURCE.batch(0, 1), {"reconstructions_per_caption": 1}, "at least 2 where prompts"),
        (SOURCE.prompts.batch(0, 1), {}, "caption-weight: expected 0 where prompts"),
    ],
)
def test_what_could_not_be_learnt_is_refused(batch: Batch, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        sub_batches(batch, replace(settings("umm1"), **changes))
