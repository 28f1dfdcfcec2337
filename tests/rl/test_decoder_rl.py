"""The diffusion decoder learns in the very loop of the captioner: alone, or both at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.rl.tiny_run import build_model, config, reward
from uae.config import DecodeSettings
from uae.models.llm_diffusion import LLMDiffusion
from uae.rl.config import TrainConfig
from uae.rl.run import PolicyRun
from uae.rl.train import train
from uae.utils.checkpoint import load_latest
from uae.utils.metrics import read_metrics
from uae.world.data import SceneImages

SDE = DecodeSettings(num_steps=3, sampler="sde", window_start=1, window_size=1)
ALONE = {"caption_weight": 0.0, "group_size": 1, "reconstructions_per_caption": 3}
JOINT = {"reconstructions_per_caption": 2, "decoder_learning_rate": 1e-4}


def run(
    folder: Path, settings: TrainConfig, until: int | None = None, lora_rank: int = 0
) -> LLMDiffusion:
    model = build_model()
    model.begin_training(
        lora_rank, captions=settings.caption_weight > 0, decoding=settings.decoding
    )
    train(model, reward(), SceneImages(), settings, folder, {"model": "test"}, until=until)
    return model


def moved(model: LLMDiffusion) -> set[str]:
    """The parts that are not as they were."""
    start = dict(build_model().named_parameters())
    changed = {
        name
        for name, p in model.named_parameters()
        if name in start and not torch.equal(p, start[name])
    }
    return {".".join(name.split(".")[:2]) for name in changed}


def test_the_decoder_alone(tmp_path: Path):
    model = run(tmp_path, config(1, decoding=SDE, use_bf16=False, **ALONE))
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["rl_image/log_prob_gap"] < 1e-5
    assert "rl_image/entropy" not in metrics and "rl/kl" not in metrics
    assert metrics["reward/group_std"] > 0
    assert moved(model) == {"decoder.transformer"}


def test_instructions_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    instructions = []
    original = LLMDiffusion.caption

    def caption(self, images, settings, *, group_size=1, **draws):
        if group_size == 3:  # a rollout's, not the probe's
            instructions.append(settings.instruction)
        return original(self, images, settings, group_size=group_size, **draws)

    monkeypatch.setattr(LLMDiffusion, "caption", caption)
    run(tmp_path, config(3, instructions=("say much", "say little"), probe_every=10))
    assert instructions == ["say much", "say little", "say much"]


def test_both_ends_in_one_step(tmp_path: Path):
    model = run(tmp_path, config(1, decoding=SDE, use_bf16=False, **JOINT))
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    assert max(metrics["rl/log_prob_gap"], metrics["rl_image/log_prob_gap"]) < 1e-5
    assert moved(model) == {"decoder.transformer", "encoder.model"}


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, lora_rank: int):
    settings = config(4, decoding=SDE, ema_decay=0.5, ema_every=1, **JOINT)
    whole = run(tmp_path / "whole", settings, lora_rank=lora_rank)
    run(tmp_path / "parts", settings, until=1, lora_rank=lora_rank)
    parts = run(tmp_path / "parts", settings, lora_rank=lora_rank)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
    checkpoint = load_latest(tmp_path / "whole/checkpoints")
    assert checkpoint is not None and checkpoint.step == 4
    average, raw = checkpoint.weights["average"], checkpoint.weights["policy"]
    assert any(not torch.equal(average[name], raw[name]) for name in raw)
    left = whole.encoder.named_trainable_parameters()
    assert left and all(
        torch.equal(p, average[name]) for name, p in left.items()
    )  # a finished run leaves the average


def averaged_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_steps: int, until: int | None = None
):
    """A weight at the start and after each step, and as the run left it; the average is updated
    every two steps."""
    trace, finish_step = [], PolicyRun.finish_step

    def watched(self, metrics):
        trace.append(value(self.parameters))
        finish_step(self, metrics)

    def value(parameters) -> torch.Tensor:
        return (
            next(p for name, p in parameters.items() if name.endswith("q_proj.weight"))
            .detach()
            .clone()
        )

    start = value(build_model().encoder.named_trainable_parameters())
    with monkeypatch.context() as patch:
        patch.setattr(PolicyRun, "finish_step", watched)
        model = run(folder, config(num_steps, ema_decay=0.9, ema_every=2, probe_every=100), until)
    return [start, *trace], value(model.encoder.named_trainable_parameters())


def test_a_run_shorter_than_the_averages_interval_leaves_its_last_weights(tmp_path, monkeypatch):
    weights, left = averaged_run(tmp_path, monkeypatch, 1)
    assert torch.equal(left, weights[1]) and not torch.equal(left, weights[0])


def test_the_average_warms_up(tmp_path, monkeypatch):
    """By hand: its first update has decay 1/10, the second 2/11, the third 3/12."""
    weights, left = averaged_run(tmp_path, monkeypatch, 4)
    first = 0.1 * weights[0] + 0.9 * weights[2]
    torch.testing.assert_close(left, 2 / 11 * first + 9 / 11 * weights[4], atol=1e-7, rtol=0)


def test_the_last_steps_count_where_they_are_no_whole_interval(tmp_path, monkeypatch):
    """Of five steps the fifth is in what is left; the average that a longer run goes on with is
    that of four."""
    weights, left = averaged_run(tmp_path / "a", monkeypatch, 5)
    first = 0.1 * weights[0] + 0.9 * weights[2]
    second = 2 / 11 * first + 9 / 11 * weights[4]
    torch.testing.assert_close(left, 0.25 * second + 0.75 * weights[5], atol=1e-7, rtol=0)
    checkpoint = load_latest(tmp_path / "a/checkpoints")
    assert checkpoint is not None
    kept = next(
        value
        for name, value in checkpoint.weights["average"].items()
        if name.endswith("q_proj.weight")
    )
    torch.testing.assert_close(kept, second, atol=1e-7, rtol=0)


def test_an_average_in_pieces_is_the_average_in_one(tmp_path, monkeypatch):
    _, whole = averaged_run(tmp_path / "whole", monkeypatch, 5)
    pieces = [averaged_run(tmp_path / "pieces", monkeypatch, 5, until)[1] for until in (1, 3, 5)]
    assert torch.equal(pieces[-1], whole)


def test_the_averages_decay_is_reached():
    run = PolicyRun(Path(), build_model(), config(1, ema_decay=0.9), {})
    decays = [run.average.decay_at(number) for number in (0, 1, 79, 80, 81, 1000)]
    assert decays == pytest.approx([0.1, 2 / 11, 80 / 89, 0.9, 0.9, 0.9])


def test_nothing_to_learn_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="every weight is frozen"):
        run(tmp_path, config(1, caption_weight=0.0))
