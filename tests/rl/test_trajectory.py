"""UMM-2 in the very loop of UMM-1: caption tokens and image tokens of one trajectory, one
reward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.rl.tiny_run import SMALL_IMAGES, build_small_janus, config, reward
from uae.autoencode import autoencode
from uae.config import DecodeSettings
from uae.models.janus import Janus
from uae.rl.learning import Learning
from uae.rl.segments import trained_segments
from uae.rl.train import train, update
from uae.rl.updates import PolicyGradient
from uae.utils.checkpoint import load_latest
from uae.utils.metrics import read_metrics
from uae.world.data import SceneImages
from uae.world.models import build_janus


def build(lora_rank: int = 0) -> Janus:
    janus = build_small_janus()
    janus.begin_training(lora_rank, captions=True, decoding=SMALL_IMAGES)
    return janus


def build_shipped_size(lora_rank: int) -> Janus:
    """Of 144 image tokens, over which means are steadier."""
    torch.manual_seed(0)
    janus = build_janus().eval()
    janus.begin_training(lora_rank, captions=True, decoding=DecodeSettings())
    return janus


def run(
    folder: Path,
    num_steps: int,
    lora_rank: int = 0,
    until: int | None = None,
    janus: Janus | None = None,
    **changes,
) -> Janus:
    janus, decoding = janus or build(lora_rank), replace(SMALL_IMAGES, guidance_scale=2.0)
    settings = replace(config(num_steps, decoding=decoding, probe_every=100), **changes)
    train(janus, reward(), SceneImages(), settings, folder, {"model": "test"}, until=until)
    return janus


def moved(janus: Janus, before: Janus) -> dict[str, bool]:
    start = dict(before.model.named_parameters())
    return {name: not torch.equal(p, start[name]) for name, p in janus.model.named_parameters()}


def test_both_halves_score_what_they_sampled_and_learn(tmp_path: Path):
    janus = run(tmp_path, 1, use_bf16=False)
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    for half in ("rl", "rl_image"):
        assert metrics[f"{half}/log_prob_gap"] < 1e-5
        assert metrics[f"{half}/entropy"] > 0 and metrics[f"{half}/kl"] < 1e-3
    assert metrics["image/guidance_gap"] > 0
    learnt = moved(janus, build())
    assert any(learnt.values())
    assert all(
        name.startswith(("model.language_model.", "lm_head."))
        for name, did in learnt.items()
        if did
    )


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_second_update_sees_what_the_first_did_in_bf16_too(tmp_path: Path, lora_rank: int):
    """Autocast keeps its casts of the weights: it must not keep them from one update to the
    next."""
    ratios = []
    for use_bf16 in (True, False):
        folder = tmp_path / str(use_bf16)
        run(
            folder,
            1,
            janus=build_shipped_size(lora_rank),
            decoding=DecodeSettings(guidance_scale=2.0),
            num_updates=2,
            learning_rate=1e-2,
            max_grad_norm=100.0,
            use_bf16=use_bf16,
        )
        (metrics,) = read_metrics(folder / "metrics.jsonl")
        ratios.append([metrics[f"{half}/kl_old"] for half in ("rl", "rl_image")])
    assert min(ratios[1]) > 1e-3
    assert ratios[0] == pytest.approx(ratios[1], rel=0.5)


def test_a_step_is_the_gradient_of_both_segments_as_the_paper_has_it():
    """Each action weighs 1 / |y| of the whole trajectory, each segment its own weight and KL;
    micro-batches add up."""
    janus = build()
    settings = config(
        1,
        caption_weight=10.0,
        image_weight=0.5,
        image_kl_coef=0.3,
        micro_batch=4,
        max_grad_norm=1e9,
        use_bf16=False,
    )
    with torch.no_grad():  # away from the reference, so that the KL has a gradient
        for p in janus.named_trainable_parameters().values():
            p.add_(0.02 * torch.randn_like(p))
    images, decoding = SceneImages().batch(0, 2), SMALL_IMAGES
    captions, reconstructions = autoencode(
        janus, images, settings.captioning, decoding, captions_per_image=3
    )
    rewards = torch.rand(6)
    advantages = torch.cat([(r - r.mean()) / (r.std() + 1e-4) for r in rewards.split(3)])
    lengths = captions.rollout.mask.sum(1) + reconstructions.rollout.mask.sum(1)

    def half(policy, rollout, kl_coef):
        evaluation = policy.evaluate(rollout, with_kl=True)
        gain = (evaluation.log_probs - evaluation.log_probs.detach()).exp() * advantages[
            :, None
        ] - kl_coef * evaluation.kl
        return -((gain * rollout.mask).sum(1) / lengths).mean()

    parameters = janus.named_trainable_parameters()
    loss = 10 * half(janus, captions.rollout, 0.01) + 0.5 * half(
        janus.decoder, reconstructions.rollout, 0.3
    )
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    before = [p.detach().clone() for p in parameters.values()]
    segments = trained_segments(janus, captions, reconstructions, rewards.view(2, 3, 1), settings)
    updates = [PolicyGradient(segment) for segment in segments]
    update(updates, settings, Learning(torch.optim.SGD(parameters.values(), lr=1.0)))
    for name, old, gradient in zip(parameters, before, gradients, strict=True):
        torch.testing.assert_close(old - parameters[name], gradient, atol=2e-6, rtol=1e-3, msg=name)


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
