"""Answers that are held to those before training: the loss, its gradient, and runs with it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.rl.tiny_run import build_model, check_same_weights, config, reward
from uae.config import DecodeSettings
from uae.data.questions import GENERIC, GenericQuestions
from uae.images.write import to_png
from uae.models.janus import Janus
from uae.models.llm_diffusion import LLMDiffusion
from uae.rl.auxiliary import Auxiliary
from uae.rl.config import TrainConfig
from uae.rl.learning import Learning
from uae.rl.train import train, update
from uae.stages.grpo_settings import UnifiedGRPOSettings
from uae.stages.sources import Sources
from uae.types import QuestionSource
from uae.utils.metrics import read_metrics
from uae.world.data import SCENES, SceneImages, ScenePrompts, SceneQuestions
from uae.world.models import build_janus

ANCHOR = Auxiliary(questions=SceneQuestions())


def settings(num_steps: int = 1, **changes) -> TrainConfig:
    return config(
        num_steps,
        **({"anchor_coef": 2.0, "questions_per_step": 3, "use_bf16": False} | changes),
    )


def moved(model: LLMDiffusion | Janus, by: float = 0.02):
    """A model in training that no longer is what it was."""
    model.begin_training(0, captions=True, decoding=None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.encoder.named_trainable_parameters().values():
            p += by * torch.randn(p.shape, generator=generator)
    return model


@pytest.mark.parametrize("build", [build_model, build_janus])
def test_it_is_the_divergence_over_the_vocabulary_at_the_references_answers(build):
    model = moved(build())
    images, texts = SceneQuestions(1).batch(2, 3)
    drift, encoder, expected = model.encoder.answer_drift(images, texts).value, model.encoder, []
    for image, text in zip(images, texts, strict=True):
        with torch.no_grad(), encoder.reference():
            rollout = encoder.sample(
                encoder.look([image], [text], temperature=0.0), max_new_tokens=16
            ).rollout
        for t in range(int(rollout.mask.sum())):
            with torch.no_grad():
                now = encoder._scores(rollout)[0, t]
                with encoder.reference():
                    then = encoder._scores(rollout)[0, t]
            expected.append(torch.nn.functional.kl_div(now, then, log_target=True, reduction="sum"))
    torch.testing.assert_close(drift, torch.stack(expected).mean(), rtol=1e-4, atol=1e-6)
    assert drift > 1e-3


def test_of_a_model_that_has_not_moved_it_is_nothing():
    model = moved(build_model(), by=0.0)
    drift = model.encoder.answer_drift(*SceneQuestions().batch(0, 3)).value
    drift.backward()
    assert abs(drift.item()) < 1e-6
    gradients = [p.grad for p in model.encoder.named_trainable_parameters().values()]
    assert max(g.abs().max().item() for g in gradients if g is not None) < 1e-4


def test_its_gradient_is_added_to_the_steps_and_leads_back():
    model, given = moved(build_model()), settings(max_grad_norm=1e9)
    parameters = list(model.encoder.named_trainable_parameters().values())
    asked = ANCHOR.questions.batch(2, 3)  # type: ignore[union-attr]
    drift = model.encoder.answer_drift(*asked).value
    gradients = torch.autograd.grad(drift, parameters, allow_unused=True)
    before = [p.detach().clone() for p in parameters]
    learning = Learning(torch.optim.SGD(parameters, lr=1e-3))
    metrics = update([], given, learning, partial(ANCHOR.backward, model, given, learning, 2))
    assert metrics["rl/anchor_kl"] == pytest.approx(drift.item())
    for p, old, gradient in zip(parameters, before, gradients, strict=True):
        if gradient is not None:
            torch.testing.assert_close(old - p, 2e-3 * gradient, rtol=1e-3, atol=1e-6)
    assert model.encoder.answer_drift(*asked).value < drift


def test_where_painting_has_moments_of_its_own_its_gradient_is_of_captioning():
    model = build_janus()
    model.begin_training(0, captions=True, decoding=DecodeSettings())
    given = settings(decoder_learning_rate=1e-5)
    learning = Learning.of(model, given)
    ANCHOR.backward(model, given, learning, 0)
    assert any(own.grad is not None for own, _ in learning.twins.pairs)
    assert all(twin.grad is None for _, twin in learning.twins.pairs)


def run(folder: Path, num_steps: int, until: int | None = None, **changes) -> None:
    model = build_model()
    model.begin_training(0, captions=True, decoding=None)
    given = settings(num_steps, **changes)
    train(model, reward(), SceneImages(), given, folder, {}, until, auxiliary=ANCHOR)


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path):
    run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 3, until=1)
    run(tmp_path / "parts", 3)
    check_same_weights(tmp_path / "whole", tmp_path / "parts", step=3)
    logged = [row["rl/anchor_kl"] for row in read_metrics(tmp_path / "whole/metrics.jsonl")]
    assert logged[0] == pytest.approx(0.0, abs=1e-6) and logged[2] > 0


def test_without_it_nothing_is_asked(tmp_path: Path):
    run(tmp_path, 1, anchor_coef=0.0)
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    assert "rl/loss" in metrics and "rl/anchor_kl" not in metrics


def test_the_worlds_questions_are_two_about_each_training_scene():
    images, texts = SceneQuestions(3).batch(1, 4)
    assert isinstance(SceneQuestions(), QuestionSource)
    first, second = SceneImages(3).batch(1, 2)
    assert images[0] is images[1] and torch.equal(images[0], first)
    assert images[2] is images[3] and torch.equal(images[2], second)
    assert len(set(texts)) > 1 and all(text.endswith("?") for text in texts)
    assert texts == SceneQuestions(3).batch(1, 4)[1] != SceneQuestions(3).batch(2, 4)[1]


def test_generic_questions_go_round():
    source = GenericQuestions(SceneImages(3))
    assert isinstance(source, QuestionSource)
    images, texts = source.batch(1, 5)
    assert len(images) == 5 and texts == [GENERIC[i % len(GENERIC)] for i in range(5, 10)]
    assert images[0] is images[1] and not torch.equal(images[1], images[2])


def test_a_stage_asks_about_the_users_images_what_can_be_asked_of_any(tmp_path: Path):
    asked = UnifiedGRPOSettings(train=settings())
    of_world = Sources(asked, SCENES).questions()
    assert isinstance(of_world, SceneQuestions)
    for i, image in enumerate(SceneImages().batch(0, 3)):
        (tmp_path / f"{i}.png").write_bytes(to_png(image))
    given = replace(asked, data=(str(tmp_path),))
    of_files = Sources(given, SCENES).questions()
    assert isinstance(of_files, GenericQuestions)
    images, texts = of_files.batch(0, 2)
    assert images[0].ndim == 3 and texts == list(GENERIC[:2])
    assert Sources(UnifiedGRPOSettings(), SCENES).questions() is None


def test_what_can_not_be_held_is_refused():
    model, given = build_model(), settings()
    model.begin_training(0, captions=True, decoding=None)
    with pytest.raises(ValueError, match=r"^anchor-coef: expected 0 where no questions"):
        Auxiliary().check(model, given)
    ANCHOR.check(model, given)
    Auxiliary().check(model, replace(given, anchor_coef=0.0))


def test_nothing_is_asked_where_nothing_that_answers_learns():
    """A recipe's anchor stays where painting alone is learnt from it."""
    model, given = build_model(), settings()
    learning = Learning(torch.optim.SGD(model.encoder.parameters(), lr=1e-3))
    model.begin_training(0, captions=False, decoding=None)
    Auxiliary().check(model, given)
    assert ANCHOR.backward(model, given, learning, 0) == {}
    model.begin_training(0, captions=True, decoding=None)
    assert ANCHOR.backward(model, given, learning, 0).keys() == {"rl/anchor_kl"}


# --- what texts tell the decoder -----------------------------------------------------------------

HELD = Auxiliary(texts=ScenePrompts(exhaustive_share=0.5))


def test_what_texts_tell_is_compared_token_by_token_with_what_they_told():
    model, texts = moved(build_model()), ["a ring", "a small red circle above left on gray"]
    moved_by, before = 0.0, 0.0
    for text in texts:
        now, _ = model.encoder.text_states([text])
        with model.encoder.reference():
            then, _ = model.encoder.text_states([text])
        moved_by += (now - then).square().sum().item()
        before += then.square().sum().item()
    assert (
        model.text_drift(texts).value.item() == pytest.approx(moved_by / before, rel=1e-4)
        and moved_by
    )


def test_holding_texts_adds_its_gradient_and_leads_back():
    model, given = moved(build_model()), settings(anchor_coef=0.0, text_anchor_coef=2.0)
    parameters = list(model.encoder.named_trainable_parameters().values())
    texts = [prompt.text for prompt in ScenePrompts(0, 0.5).batch(2, given.texts_per_step)]
    drift = model.text_drift(texts).value
    gradients = torch.autograd.grad(drift, parameters, allow_unused=True)
    learning = Learning(torch.optim.SGD(parameters, lr=1e-3))
    metrics = HELD.backward(model, given, learning, 2)
    assert metrics == {"rl/text_drift": pytest.approx(drift.item())}
    for p, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            torch.testing.assert_close(p.grad, 2 * gradient, rtol=1e-3, atol=1e-6)
    learning.optimizer.step()
    assert model.text_drift(texts).value < drift


def test_texts_that_can_not_be_held_are_refused(tmp_path: Path):
    model, given = build_model(), settings(anchor_coef=0.0, text_anchor_coef=1.0)
    model.begin_training(0, captions=True, decoding=None)
    HELD.check(model, given)
    with pytest.raises(ValueError, match=r"^text-anchor-coef: expected 0 where no texts"):
        Auxiliary().check(model, given)
    model.text_encoder = "reference"
    with pytest.raises(ValueError, match=r"^text-anchor-coef: expected a diffusion decoder whose"):
        HELD.check(model, given)
    janus = build_janus()
    janus.begin_training(0, captions=True, decoding=None)
    with pytest.raises(ValueError, match=r"^text-anchor-coef: expected a diffusion decoder whose"):
        HELD.check(janus, given)
    told = UnifiedGRPOSettings(train=given, anchor_texts=str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match=r"^anchor-texts: expected a file of prompts or world"):
        Sources(told, SCENES).check()
    with pytest.raises(ValueError, match=r"^anchor-texts: expected a file, got world"):
        Sources(replace(told, anchor_texts=None, data=("photos",))).anchor_texts()


def test_texts_to_hold_are_of_a_file_or_the_worlds(tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    given = UnifiedGRPOSettings(train=settings(text_anchor_coef=1.0))
    of_world = Sources(given, SCENES).anchor_texts()
    assert isinstance(of_world, ScenePrompts) and of_world.exhaustive_share == 0.5
    of_file = Sources(replace(given, anchor_texts=str(tmp_path / "prompts.txt"))).anchor_texts()
    assert of_file is not None and of_file.batch(0, 1)[0].text == "a red circle"
    assert Sources(UnifiedGRPOSettings(), SCENES).anchor_texts() is None
