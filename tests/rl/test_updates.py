"""A decoder that learns on the forward process, or with a pull to its old weights: what it learns
from, that it is held to the right weights, resumes, and refuses what does not fit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import uae.rl.train
from tests.models.real_layouts import JANUS_SIDE
from tests.rl.test_whole_steps import Injected, assert_same_run, failing_at, latest
from tests.rl.tiny_run import build_model, build_small_janus, config, likeness
from uae.config import DecodeSettings
from uae.diffusion.forward import AWM, NFT, norm_ratio
from uae.diffusion.schedule import add_noise
from uae.models.llm_diffusion import LLMDiffusion
from uae.rewards.base import WeightedSum
from uae.rl.advantages import group_advantages
from uae.rl.config import TrainConfig
from uae.rl.losses import BatchCounts
from uae.rl.run import PolicyRun, Probe
from uae.rl.segments import Segment
from uae.rl.train import train
from uae.rl.updates import ForwardProcess, PolicyGradient, update_of
from uae.utils.metrics import read_metrics
from uae.utils.optim import FastAverage
from uae.world.data import SceneImages

ODE = DecodeSettings(num_steps=4)
SDE = DecodeSettings(num_steps=3, sampler="sde")
ALONE = {
    "caption_weight": 0.0,
    "group_size": 1,
    "reconstructions_per_caption": 3,
    "use_bf16": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "nft": {"decoder_update": "nft", "decoding": ODE},
    "awm": {"decoder_update": "awm", "decoding": ODE, "awm": AWM(num_times=2)},
    "pull": {"pull_coef": 0.1, "decoding": SDE},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _small_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uae.rl.train, "Probe", partial(Probe, num_images=2))


def settings(kind: str, num_steps: int = 1, **changes) -> TrainConfig:
    return config(num_steps, **(ALONE | KINDS[kind] | changes))


def learner(settings: TrainConfig, lora_rank: int = 2) -> LLMDiffusion:
    model = build_model()
    model.begin_training(
        lora_rank, captions=settings.caption_weight > 0, decoding=settings.decoding_at(0)
    )
    return model


def run(
    folder: Path, settings: TrainConfig, until: int | None = None, lora_rank: int = 2
) -> LLMDiffusion:
    model = learner(settings, lora_rank)
    reward = WeightedSum({"likeness": (1.0, likeness)})
    train(model, reward, SceneImages(), settings, folder, {"model": "test"}, until=until)
    return model


def image_update(model: LLMDiffusion, settings: TrainConfig, old: FastAverage | None) -> Any:
    """Of six pictures of two texts, and made-up advantages."""
    reconstructions = model.generate(
        ["a red dot", "two dots"], settings.decoding_at(0), group_size=3
    )
    rollout = reconstructions.rollout
    assert rollout is not None
    advantages = group_advantages(torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.5]])).flatten()
    counts, lengths = BatchCounts.of(rollout.mask), rollout.mask.sum(1).float()
    segment = Segment(
        True, model.decoder, rollout, advantages, lengths, 1.0, settings.objective, counts
    )
    return update_of(segment, settings, old, 0)


def old_weights(model: LLMDiffusion, offset: float = 0.0) -> FastAverage:
    """``offset`` away from the decoder's."""
    old = FastAverage(model.decoder.named_trainable_parameters(), 0.001, 0.5)
    for value in old.values.values():
        value.add_(offset * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    return old


def gradient(update: Any, model: LLMDiffusion, rows: Tensor | None = None) -> Tensor:
    for parameter in model.parameters():
        parameter.grad = None
    for loss, _ in update.losses(torch.arange(6) if rows is None else rows, None):
        loss.backward()
    parameters = model.decoder.named_trainable_parameters().values()
    return torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None])


# --- what is learnt from --------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_finished_latents_are_kept_and_are_what_the_ode_paints(guidance_scale: float):
    model, decoding = build_model(), replace(ODE, guidance_scale=guidance_scale)
    texts = ["a red dot", "two dots"]
    plain = model.generate(texts, decoding, group_size=3)
    kept = model.generate(texts, replace(decoding, keeps_latents=True), group_size=3)
    rollout = kept.rollout
    assert plain.rollout is None and rollout is not None
    assert torch.equal(plain.images, kept.images)
    assert rollout.actions.dtype == torch.float32 and not rollout.mask.numel()
    assert torch.equal(model.decoder.decode_latents(rollout.actions), kept.images)
    states, mask = model.text_states(texts)
    embeds = model.decoder.condition(states, mask).rows()
    assert rollout.context.guidance_scale == guidance_scale
    for i, kept_embeds in enumerate(rollout.context.embeds):
        assert torch.equal(kept_embeds, embeds[i // 3])


@pytest.mark.parametrize("kind", ["nft", "awm"])
def test_a_micro_batch_changes_no_gradient(kind: str):
    """Times and noise are a picture's own."""
    given = settings(kind)
    model = learner(given, lora_rank=0)
    update = image_update(model, given, old_weights(model, 0.01))
    whole = gradient(update, model)
    parts = sum(gradient(update, model, rows) for rows in torch.arange(6).split(4))
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["nft", "awm"])
def test_a_picture_is_pulled_to_by_its_advantage(kind: str):
    """A step along the gradient lowers the matching error of the best picture, at the noise of the
    update, and raises that of the worst."""
    given = settings(kind)
    model = learner(given, lora_rank=0)
    update = image_update(model, given, old_weights(model))
    errors = []
    for _ in range(2):
        noised = list(update._noised(*update._times(torch.arange(6))))
        error = [(n.velocity - n.noise + n.latents).square().flatten(1).mean(1) for n in noised]
        errors.append(torch.stack(error).mean(0).detach())
        gradient(update, model)
        with torch.no_grad():
            for p in model.decoder.named_trainable_parameters().values():
                if p.grad is not None:
                    p -= 1e-3 * p.grad
    change = errors[1] - errors[0]
    assert change[2] < change[0] and change[3] < change[4]


def test_velocities_are_of_the_weights_that_they_are_said_to_be():
    given = settings("nft")
    model = learner(given)
    update = image_update(model, given, old_weights(model, 0.3))
    noised = next(update._noised(*update._times(torch.arange(6))))
    rollout = update.segment.rollout
    points = add_noise(rollout.actions, noised.noise, noised.sigma), noised.sigma
    with torch.no_grad():
        assert torch.equal(noised.velocity, model.decoder.predict(rollout.context, *points))
        for name, p in model.decoder.named_trainable_parameters().items():
            p.copy_(update.old.values[name])
        assert torch.equal(noised.old, model.decoder.predict(rollout.context, *points))
        with model.decoder.reference():
            expected = model.decoder.predict(rollout.context, *points)
    assert torch.equal(noised.reference, expected)
    assert not torch.equal(noised.old, noised.velocity)
    assert noised.velocity.requires_grad and not noised.old.requires_grad


def test_the_pull_is_the_distance_of_velocities_at_each_random_step():
    given = settings("pull")
    model = learner(given)
    old = old_weights(model, 0.3)
    update = image_update(model, given, old)
    rollout = update.segment.rollout
    evaluation = model.decoder.evaluate(rollout, with_kl=True, old=old.in_place)
    for t in range(3):
        points = rollout.actions[:, t], rollout.context.sigmas[t].expand(6)
        now = model.decoder.predict(rollout.context, *points)
        with torch.no_grad(), old.in_place():
            before = model.decoder.predict(rollout.context, *points)
        with torch.no_grad(), model.decoder.reference():
            reference = model.decoder.predict(rollout.context, *points)
        distance = (now - before).square().flatten(1).mean(1)
        torch.testing.assert_close(evaluation.pull[:, t], distance)
        torch.testing.assert_close(evaluation.norm_ratio[:, t], norm_ratio(now, reference))
    plain = PolicyGradient(update.segment)
    (loss, metrics), (without, _) = (
        next(each.losses(torch.arange(6), None)) for each in (update, plain)
    )
    assert metrics["pull"] == pytest.approx(evaluation.pull.mean().item(), rel=1e-4)
    assert (loss - without).item() == pytest.approx(0.1 * metrics["pull"], rel=1e-3)


# --- runs -----------------------------------------------------------------------------------------


@every_kind
def test_the_decoder_alone_moves_and_says_how_far(kind: str, tmp_path: Path):
    model = run(tmp_path, settings(kind, 2), lora_rank=0)
    start = dict(build_model().named_parameters())
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
    assert moved and all(name.startswith("decoder.transformer.") for name in moved)
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first["rl_image/velocity_norm_ratio"] == pytest.approx(1.0)
    assert first["rl_image/pull"] == 0 and second["rl_image/pull"] > 0
    if kind != "pull":
        assert first["rl_image/reference_distance"] == 0 < second["rl_image/reference_distance"]


@every_kind
def test_resumed_is_uninterrupted_bit_for_bit(kind: str, tmp_path: Path):
    given = settings(kind, 4, old_decay_rate=0.2, ema_decay=0.5, ema_every=1)
    whole = run(tmp_path / "whole", given)
    run(tmp_path / "parts", given, until=1)
    parts = run(tmp_path / "parts", given)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    weights = latest(tmp_path / "whole").weights
    assert weights["old"].keys() == weights["policy"].keys()
    assert any(not torch.equal(weights["old"][n], p) for n, p in weights["policy"].items())


@every_kind
def test_a_failed_step_is_taken_back(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The old weights too: the step fails after they were moved."""
    given = settings(kind, 2, old_decay_rate=0.2, images_per_step=1)
    with monkeypatch.context() as patch:
        patch.setattr(PolicyRun, "finish_step", failing_at(1, PolicyRun.finish_step, Injected))
        with pytest.raises(Injected):
            run(tmp_path / "broken", given)
    assert latest(tmp_path / "broken").step == 1
    run(tmp_path / "broken", given)
    run(tmp_path / "whole", given)
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


def test_the_old_weights_follow_as_published():
    model = learner(settings("nft"))
    decays = {
        kind: [
            PolicyRun(Path(), model, settings(kind), {}).old.decay_at(n) for n in (1, 299, 400, 900)
        ]
        for kind in KINDS
    }
    assert decays["nft"] == pytest.approx([0.001, 0.299, 0.4, 0.5])
    assert decays["awm"] == decays["pull"] == pytest.approx([0.001, 0.299, 0.3, 0.3])
    plain = PolicyRun(Path(), model, config(1, decoding=SDE, **ALONE), {})
    assert not plain.old.values and "old" not in plain.contents()[0]


def test_nft_paints_with_the_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Which were those of the run's start, as they are never moved here."""
    monkeypatch.setattr(FastAverage, "update", lambda self, number: None)
    painted: dict[str, list[Tensor]] = {}
    original = LLMDiffusion.reconstruct
    for kind in ("nft", "awm"):

        def reconstruct(self, captions, decoding, *, step=0, of=kind, **draws):
            result = original(self, captions, decoding, step=0, **draws)
            painted.setdefault(of, []).append(result.images)
            return result

        monkeypatch.setattr(LLMDiffusion, "reconstruct", reconstruct)
        monkeypatch.setattr(SceneImages, "batch", lambda self, step, num: self.probe(num))
        monkeypatch.setattr(LLMDiffusion, "caption", caption_of_step_0)
        run(tmp_path / kind, settings(kind, 2, learning_rate=1e-2))
    assert torch.equal(*painted["nft"])
    assert not torch.equal(*painted["awm"])


_caption = LLMDiffusion.caption


def caption_of_step_0(self, images, captioning, *, step=0, **draws):
    return _caption(self, images, captioning, step=0, **draws)


def test_awms_ratio_leaves_1_in_a_second_update(tmp_path: Path):
    """Its times and noise are those of the first."""
    run(tmp_path, settings("awm", 1, num_updates=2, learning_rate=1e-2))
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["rl_image/ratio_mean"] != 1
    assert metrics["rl_image/ratio_mean"] == pytest.approx(1, abs=0.2)


def test_captions_may_learn_beside(tmp_path: Path):
    """Their loss does not count pictures as actions of theirs."""
    both = {"caption_weight": 1.0, "group_size": 2, "reconstructions_per_caption": 2}
    run(tmp_path / "nft", settings("nft", **both))
    run(tmp_path / "ode", config(1, decoding=ODE, **(both | {"image_weight": 0.0})))
    nft, ode = (read_metrics(tmp_path / name / "metrics.jsonl")[0] for name in ("nft", "ode"))
    assert nft["rl_image/velocity_norm_ratio"] == pytest.approx(1.0)
    assert nft["rl/ratio_mean"] == ode["rl/ratio_mean"] == 1
    assert nft["caption/tokens"] == ode["caption/tokens"]


def brightness(sources, captions, reconstructions):
    return reconstructions.mean((1, 2, 3))


@pytest.mark.slow
@every_kind
def test_a_simple_reward_rises(kind: str, tmp_path: Path):
    """By twice its standard deviation within a group, 0.002, in ten steps."""
    given = settings(
        kind,
        10,
        reconstructions_per_caption=8,
        learning_rate=3e-3,
        probe_every=100,
        save_every=100,
    )
    reward = WeightedSum({"brightness": (1.0, brightness)})
    train(learner(given, 0), reward, SceneImages(), given, tmp_path, {"model": "test"})
    rewards = [row["reward/total"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.004


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoding": SDE}, r"decoding\.sampler: expected ode with decoder-update nft.*got sde"),
        (
            {"decoding": replace(ODE, guidance_scale=3.0)},
            r"decoding\.guidance-scale: expected 1 with decoder-update nft.*got 3",
        ),
        ({"image_weight": 0.0, "caption_weight": 1.0, "group_size": 2}, "image-weight: expected"),
        ({"pull_coef": 0.1}, r"pull-coef and image-kl-coef.*set nft\.reference-coef$"),
        ({"image_kl_coef": 0.1}, r"pull-coef and image-kl-coef"),
        ({"decoder_update": "policy_gradient", "pull_coef": 0.1}, "pull-coef: expected decoding"),
        ({"pull_coef": -1.0}, "pull-coef: expected at least 0"),
        ({"old_decay_max": 1.0}, "old-decay-max: expected at least 0 and below 1"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        settings("nft", **changes)


@pytest.mark.parametrize("kind", ["nft", "pull"])
def test_a_decoder_of_tokens_is_refused(kind: str, tmp_path: Path):
    model = build_small_janus()
    decoding = replace(KINDS[kind]["decoding"], height=JANUS_SIDE, width=JANUS_SIDE)
    given = settings(kind, decoding=decoding)
    model.begin_training(2, captions=True, decoding=decoding)
    reward = WeightedSum({"likeness": (1.0, likeness)})
    with pytest.raises(ValueError, match=r"expected a decoder with a velocity.*got Janus \(umm2\)"):
        train(model, reward, SceneImages(), given, tmp_path, {"model": "test"})
    assert not list(tmp_path.iterdir())


def test_each_kind_is_chosen_by_its_name():
    for kind, expected in (
        ("nft", ForwardProcess),
        ("awm", ForwardProcess),
        ("pull", PolicyGradient),
    ):
        model = learner(settings(kind))
        assert isinstance(image_update(model, settings(kind), old_weights(model)), expected)
    assert settings("nft").nft == NFT()
