"""Flow matching on captioned pictures beside reinforcement learning: its loss, its gradient, and
runs with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.rl.tiny_run import build_model, check_same_weights, config, reward
from uae.config import DecodeSettings
from uae.diffusion.schedule import training_sigmas
from uae.models.janus import Janus
from uae.models.llm_diffusion import LLMDiffusion
from uae.rl.auxiliary import Auxiliary
from uae.rl.config import TrainConfig
from uae.rl.learning import Learning
from uae.rl.train import train, update
from uae.rl.updates import check_update
from uae.stages.grpo_settings import UnifiedGRPOSettings
from uae.stages.unified_grpo import UnifiedGRPO
from uae.types import PairSource
from uae.utils.metrics import read_metrics
from uae.utils.seed import normals
from uae.world.data import SCENES, SceneImages, ScenePairs, train_scenes
from uae.world.models import build_janus

PAIRS = Auxiliary(ScenePairs())
SDE = DecodeSettings(num_steps=3, sampler="sde", window_size=1)


def settings(num_steps: int = 1, **changes) -> TrainConfig:
    alone = {"caption_weight": 0.0, "group_size": 1, "reconstructions_per_caption": 2}
    matched = {"matching_coef": 0.5, "pairs_per_step": 3, "use_bf16": False}
    return config(num_steps, **({"decoding": SDE} | alone | matched | changes))


def learner() -> LLMDiffusion:
    model = build_model()
    model.begin_training(0, captions=False, decoding=SDE)
    return model


def test_the_loss_is_that_of_each_pair_at_its_own_level():
    model, (images, texts) = learner(), ScenePairs().batch(0, 3)
    texts[1] = "a ring"  # of another length
    loss = model.matching_loss(images, texts, seed=4, step=7)
    decoder, expected = model.decoder, []
    latents = decoder.encode_images(images)
    noise = normals(4, 7, range(3), "matching", latents.shape[1:])
    draws = normals(4, 7, range(3), "matching level", (1,))[:, 0]
    sigmas = training_sigmas(draws, decoder.scheduler.config["shift"])
    for i, text in enumerate(texts):
        one = slice(i, i + 1)
        point = (1 - sigmas[i]) * latents[one] + sigmas[i] * noise[one]
        embeds = decoder.condition(*model.text_states([text]))
        velocity = decoder.velocity(point, sigmas[one], embeds)
        expected.append((velocity - (noise[one] - latents[one])).square().mean())
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-6)
    assert len({sigma.item() for sigma in sigmas}) == 3
    assert not torch.equal(loss, model.matching_loss(images, texts, seed=4, step=8))


def test_its_gradient_is_added_to_the_steps():
    model, pairs, given = learner(), ScenePairs(), settings()
    parameters = list(model.decoder.named_trainable_parameters().values())
    loss = model.matching_loss(*pairs.batch(2, 3), seed=given.seed, step=2)
    gradients = torch.autograd.grad(loss, parameters)
    before = [p.detach().clone() for p in parameters]
    learning = Learning(torch.optim.SGD(parameters, lr=1.0))
    unclipped = replace(given, max_grad_norm=1e9)
    metrics = update(
        [], unclipped, learning, lambda: Auxiliary(pairs).backward(model, given, learning, 2)
    )
    assert metrics["rl_image/matching_loss"] == pytest.approx(loss.item())
    for p, old, gradient in zip(parameters, before, gradients, strict=True):
        torch.testing.assert_close(old - p, 0.5 * gradient, rtol=1e-4, atol=1e-7)


def run(folder: Path, num_steps: int, until: int | None = None, **changes) -> LLMDiffusion:
    model, given = learner(), settings(num_steps, **changes)
    train(model, reward(), SceneImages(), given, folder, {}, until, auxiliary=PAIRS)
    return model


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path):
    run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 3, until=1)
    run(tmp_path / "parts", 3)
    check_same_weights(tmp_path / "whole", tmp_path / "parts", step=3)
    losses = [
        row["rl_image/matching_loss"] for row in read_metrics(tmp_path / "whole/metrics.jsonl")
    ]
    assert len(set(losses)) == 3


def test_without_it_nothing_is_matched(tmp_path: Path):
    run(tmp_path, 1, matching_coef=0.0)
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    assert "rl_image/loss" in metrics and "rl_image/matching_loss" not in metrics


def test_pairs_are_of_training_scenes_with_all_that_is_in_them():
    images, texts = ScenePairs(3).batch(1, 2)
    assert isinstance(ScenePairs(), PairSource)
    assert images.shape == (2, 3, 48, 48) and len(texts) == 2
    for scene, text in zip(train_scenes(1, 2, seed=4), texts, strict=True):
        assert all(f"{o.color} {o.shape}" in text for o in scene.objects)


def painter(**changes) -> Janus:
    model = build_janus()
    model.begin_training(0, captions=False, decoding=DecodeSettings(**changes))
    return model


def test_of_image_tokens_it_is_their_cross_entropy_whatever_the_other_texts():
    model, (images, texts) = painter(), ScenePairs().batch(0, 3)
    texts[1] = "a ring"  # of another length
    loss = model.matching_loss(images, texts, seed=4, step=7)
    expected = []
    for tokens, text in zip(model.image_tokens(images), texts, strict=True):
        ids = torch.tensor([model.paint_prompt(text)])
        embeds = torch.cat(
            [
                model.language_model.embed_tokens(ids),  # type: ignore[operator]
                model.model.prepare_embeddings_for_image_generation(tokens[None, :-1]),
            ],
            1,
        )
        states = model.language_model(inputs_embeds=embeds).last_hidden_state
        logits = model.model.model.generation_head(states[:, -len(tokens) :])
        expected.append(torch.nn.functional.cross_entropy(logits[0], tokens))
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


def test_in_a_joint_step_of_one_model_its_gradient_is_of_the_painting_half():
    model, pairs = build_janus(), ScenePairs()
    model.begin_training(0, captions=True, decoding=DecodeSettings())
    beside = {"matching_coef": 0.5, "pairs_per_step": 2, "use_bf16": False}
    given = config(1, decoder_learning_rate=1e-5, max_grad_norm=1e9, **beside)
    learning = Learning.of(model, given)
    loss = model.matching_loss(*pairs.batch(2, 2), seed=given.seed, step=2)
    own, twins = zip(*learning.twins.pairs, strict=True)
    expected = torch.autograd.grad(loss, own, allow_unused=True)
    seen = {}
    learning.optimizer.register_step_pre_hook(
        lambda *_: seen.update(own=[p.grad for p in own], twins=[p.grad for p in twins])
    )
    update([], given, learning, lambda: Auxiliary(pairs).backward(model, given, learning, 2))
    assert any(gradient is not None for gradient in expected)
    for gradient, of_own, of_twin in zip(expected, seen["own"], seen["twins"], strict=True):
        assert of_own is None
        if gradient is not None:
            torch.testing.assert_close(of_twin, 0.5 * gradient, rtol=1e-4, atol=1e-7)


def test_what_can_not_be_taught_is_refused():
    class Untaught(Janus):
        matching_loss = None  # type: ignore[assignment]

    check_update(painter(), settings(decoding=DecodeSettings()))
    with pytest.raises(ValueError, match=r"^matching-coef: expected decoding\.sampler sde or cps"):
        check_update(learner(), settings(decoding=DecodeSettings()))
    model = painter()
    model.__class__ = Untaught
    with pytest.raises(ValueError, match=r"^matching-coef: expected a model that can be taught"):
        PAIRS.check(model, settings(decoding=DecodeSettings()))


def test_where_there_are_no_pairs_it_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^matching-coef: expected 0 where no"):
        train(learner(), reward(), SceneImages(), settings(), tmp_path / "run", {})
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    painting = UnifiedGRPOSettings(
        prompts=str(tmp_path / "prompts.txt"),
        rewards={"caption_likelihood": 1.0},
        train=settings(),
    )
    UnifiedGRPO(painting, SCENES).check()
    with pytest.raises(ValueError, match=r"^train\.matching-coef: expected 0, as its pairs are"):
        UnifiedGRPO(painting).check()
