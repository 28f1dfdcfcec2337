"""The diffusion decoder learns in the very loop of the captioner: alone, or both at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.rl.tiny_run import build_model, config, reward
from uae.config import DecodeSettings
from uae.data.training import SceneImages
from uae.models.llm_diffusion import LLMDiffusion
from uae.rl.config import TrainConfig
from uae.rl.train import train
from uae.utils.checkpoint import load_latest
from uae.utils.metrics import read_metrics

SDE = DecodeSettings(num_steps=3, sampler="sde", window_start=1, window_size=1)
ALONE = {"caption_weight": 0.0, "group_size": 1, "reconstructions_per_caption": 3}
JOINT = {"reconstructions_per_caption": 2, "decoder_learning_rate": 1e-4}


def run(folder: Path, settings: TrainConfig, until: int | None = None, lora_rank: int = 0) -> LLMDiffusion:
    model = build_model()
    model.begin_training(lora_rank, captions=settings.caption_weight > 0, decoding=settings.decoding)
    train(model, reward(), SceneImages(), settings, folder, {"model": "test"}, until=until)
    return model


def moved(model: LLMDiffusion) -> set[str]:
    """The parts that are not as they were."""
    start = dict(build_model().named_parameters())
    changed = {name for name, p in model.named_parameters() if name in start and not torch.equal(p, start[name])}
    return {".".join(name.split(".")[:2]) for name in changed}


def test_the_decoder_alone(tmp_path: Path):
    model = run(tmp_path, config(1, decoding=SDE, use_bf16=False, **ALONE))
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["rl_image/log_prob_gap"] < 1e-5
    assert "rl_image/entropy" not in metrics and "rl/kl" not in metrics
    assert metrics["reward/group_std"] > 0
    assert moved(model) == {"decoder.transformer"}


def test_instructions_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    original = LLMDiffusion.caption

    def caption(self, images, settings, *, group_size=1, **draws):
        if group_size == 3:  # a rollout's, not the probe's
            asked.append(settings.instruction)
        return original(self, images, settings, group_size=group_size, **draws)

    monkeypatch.setattr(LLMDiffusion, "caption", caption)
    run(tmp_path, config(3, instructions=("say much", "say little"), probe_every=10))
    assert asked == ["say much", "say little", "say much"]


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
    assert left and all(torch.equal(p, average[name]) for name, p in left.items())  # a finished run leaves the average


def test_an_average_of_one_update_is_half_way(tmp_path: Path):
    start = {name: p.clone() for name, p in build_model().encoder.named_trainable_parameters().items()}
    run(tmp_path, config(1, ema_decay=0.5, ema_every=1, save_every=1))
    checkpoint = load_latest(tmp_path / "checkpoints")
    assert checkpoint is not None
    for name, value in checkpoint.weights["average"].items():
        torch.testing.assert_close(value, (start[name] + checkpoint.weights["policy"][name]) / 2, atol=1e-6, rtol=0)


def test_nothing_to_learn_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="every weight is frozen"):
        run(tmp_path, config(1, caption_weight=0.0))
