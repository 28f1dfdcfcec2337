"""UMM-2 in the very loop of UMM-1: caption tokens and image tokens of one trajectory, one reward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.rl.tiny_run import config, reward
from uae.config import DecodeSettings
from uae.data.training import SceneImages
from uae.models.janus import Janus
from uae.models.tiny import build_janus
from uae.rl.train import train
from uae.utils.checkpoint import load_latest
from uae.utils.metrics import read_metrics


def build(lora_rank: int = 0) -> Janus:
    torch.manual_seed(0)
    janus = build_janus().eval()
    janus.begin_training(lora_rank, captions=True, decoding=DecodeSettings())
    return janus


def run(folder: Path, num_steps: int, lora_rank: int = 0, until: int | None = None, **changes) -> Janus:
    janus, decoding = build(lora_rank), DecodeSettings(guidance_scale=2.0)
    settings = replace(config(num_steps, decoding=decoding, probe_every=100), **changes)
    train(janus, reward(), SceneImages(), settings, folder, {"model": "test"}, until=until)
    return janus


def moved(janus: Janus, before: Janus) -> dict[str, bool]:
    start = dict(before.model.named_parameters())
    return {name: not torch.equal(p, start[name]) for name, p in janus.model.named_parameters()}


def test_both_halves_are_on_policy_and_learn(tmp_path: Path):
    janus = run(tmp_path, 1)
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    for half in ("rl", "rl_image"):
        assert metrics[f"{half}/ratio_mean"] == pytest.approx(1, abs=1e-5)
        assert metrics[f"{half}/entropy"] > 0 and metrics[f"{half}/kl"] < 1e-3
        assert metrics[f"{half}/log_prob_gap"] < 0.1  # bf16
    assert metrics["image/guidance_gap"] > 0
    learnt = moved(janus, build())
    assert any(learnt.values())
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name, did in learnt.items() if did)


@pytest.mark.parametrize("half", ["caption_weight", "image_weight"])
def test_either_half_can_be_left_out(tmp_path: Path, half: str):
    run(tmp_path, 1, **{half: 0.0})
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    left_out, kept = ("rl", "rl_image") if half == "caption_weight" else ("rl_image", "rl")
    assert f"{kept}/kl" in metrics and f"{left_out}/kl" not in metrics


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, lora_rank: int):
    run(tmp_path / "whole", 3, lora_rank)
    run(tmp_path / "parts", 3, lora_rank, until=1)
    run(tmp_path / "parts", 3, lora_rank)
    whole, parts = (load_latest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert whole is not None and parts is not None and whole.step == parts.step == 3
    for name, value in whole.weights["policy"].items():
        assert torch.equal(value, parts.weights["policy"][name])
