"""Long-caption pretraining on streamed pairs: what moves, what resumes, what the cache saves; small
random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.data.test_captions import pairs, png, write_shards
from tests.models.real_layouts import large_like_transformer, large_like_vae
from uae.diffusion.loss import flow_matching_loss
from uae.diffusion.schedule import add_noise
from uae.models.connectors import Projector
from uae.models.decoders.sd3 import SD3Decoder
from uae.models.llm_diffusion import LLMDiffusion
from uae.models.load import load_model
from uae.stages.fit import fit
from uae.stages.long_captions import LongCaptionConfig, LongCaptionTask, flow_loss
from uae.world.models import (
    LLM_WIDTH,
    build_captioner,
    build_decoder,
    build_llm_diffusion,
    build_scheduler,
    build_vae,
)

CAPTIONS = [
    "a red circle",
    "a small blue square in the middle",
    "nothing",
    "two green triangles on the left",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    every = [(png(60 * i % 256, (48, 48)), f"{CAPTIONS[i % 4]} {'red ' * i}") for i in range(9)]
    return str(write_shards(tmp_path_factory.mktemp("data"), "parquet", [every[:4], every[4:]]))


def tiny() -> LLMDiffusion:
    torch.manual_seed(0)
    return build_llm_diffusion(build_captioner(), build_decoder(build_vae()))


def make(data: str, **changes) -> LongCaptionTask:
    settings = {
        "num_steps": 6,
        "batch_size": 2,
        "resolution": 48,
        "pool_size": 5,
        "num_held_out": 1,
        **changes,
    }
    settings.setdefault("learning_rate", 1e-3)
    return LongCaptionTask(tiny(), LongCaptionConfig((data,), **settings))


def snapshot(task: LongCaptionTask) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def moved(task: LongCaptionTask, before: dict[str, Tensor]) -> set[str]:
    """The parts of the model with changed weights, by name."""
    now = task.model.state_dict()
    return {
        ".".join(name.split(".")[:2])
        for name, value in before.items()
        if not torch.equal(value, now[name])
    }


def counted(calls: dict[str, int], name: str, original: Callable) -> Callable:
    def call(*args):
        calls[name] += 1
        return original(*args)

    return call


def count_calls(task: LongCaptionTask, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Of VAE and LLM from now on."""
    calls = {"vae": 0, "llm": 0}
    for name, owner, method in (
        ("vae", task.model.decoder.vae, "encode"),
        ("llm", task.model.encoder, "text_states"),
    ):
        monkeypatch.setattr(owner, method, counted(calls, name, getattr(owner, method)))
    return calls


@pytest.mark.slow
def test_it_learns_and_only_projector_and_transformer_move(data: str, tmp_path: Path):
    task = make(data, num_steps=30, learning_rate=3e-3)
    before, untrained = snapshot(task), task.evaluate()
    trained = fit(task, tmp_path, save_every=30, eval_every=30)
    assert trained["flow_loss"] < 0.9 * untrained["flow_loss"]
    assert moved(task, before) == {"decoder.projector", "decoder.transformer"}
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["data/passes"] > 2 and logged[-1]["data/skipped"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_interrupted_equals_uninterrupted(data: str, tmp_path: Path, lora_rank: int):
    whole = make(data, lora_rank=lora_rank)
    fit(whole, tmp_path / "whole", save_every=2, eval_every=6)
    broken = make(data, lora_rank=lora_rank)
    normal_loss = broken.loss_of

    def stops(step: int, places: range):
        if step == 5:
            raise KeyboardInterrupt
        return normal_loss(step, places)

    broken.loss_of = stops  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fit(broken, tmp_path / "parts", save_every=2, eval_every=6)
    resumed = make(data, lora_rank=lora_rank)
    fit(resumed, tmp_path / "parts", save_every=2, eval_every=6)
    assert moved(resumed, snapshot(whole)) == set()
    following = [
        [(s.digest, s.caption) for _ in range(5) for s in task.data.next_batch()]
        for task in (whole, resumed)
    ]
    assert following[0] == following[1]


@pytest.mark.slow
def test_lora_moves_the_adapter_alone_and_is_exported_as_it_is(data: str, tmp_path: Path):
    task = make(data, lora_rank=4, learning_rate=1e-2)
    before = snapshot(task)
    fit(task, tmp_path, save_every=6, eval_every=6)
    changed = [
        name
        for name, value in task.model.state_dict().items()
        if not torch.equal(value, before[name])
    ]
    assert all("lora_" in name or "projector" in name for name in changed)
    assert any("lora_" in name for name in changed)
    weights = tmp_path / "checkpoints/step_00000006/transformer.safetensors"
    assert weights.stat().st_size < 1e6  # not the 18 MB of the frozen transformer
    task.export(tmp_path / "export")
    again = LongCaptionTask(load_model(str(tmp_path / "export")), task.config)
    assert again.evaluate()["flow_loss"] == task.evaluate()["flow_loss"]


def test_the_cache_changes_no_loss_and_a_second_pass_computes_nothing(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain, cached = make(data), make(data, cache=str(tmp_path))
    calls = count_calls(cached, monkeypatch)
    steps = {"first": range(4), "second": range(4, 8)}  # 8 pairs in batches of 2
    with torch.no_grad():
        for step in steps["first"]:
            assert torch.equal(plain.loss(step)[0], cached.loss(step)[0])
        assert calls == {"vae": 8, "llm": 8}
        for step in steps["second"]:
            assert torch.equal(plain.loss(step)[0], cached.loss(step)[0])
    assert calls == {"vae": 8, "llm": 8}
    assert cached.data.stream.pass_number >= 1


def test_captions_are_dropped_by_their_share(data: str):
    task = make(data, caption_dropout=0.25)
    encoded = [task._encode(sample) for sample in task.data.next_batch()] * 400
    places = range(len(encoded))
    dropped = [task._drop_captions(encoded, step, places) for step in (3, 3, 4)]
    is_dropped = [[each.states is task._dropped for each in group] for group in dropped]
    assert is_dropped[0] == is_dropped[1] != is_dropped[2]
    assert sum(is_dropped[0]) / 800 == pytest.approx(0.25, abs=0.05)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(encoded, dropped[0], strict=True))
    assert torch.equal(task._dropped, task.model.text_states([""])[0][0])


def test_texts_of_different_lengths_weigh_as_samples_do(tmp_path: Path):
    """Without a text length, as real checkpoints; several sizes; by hand, one sample at a time."""
    torch.manual_seed(0)
    captioner, pooled = build_captioner(), torch.randn(14)
    decoder = SD3Decoder(
        large_like_transformer(),
        large_like_vae(),
        build_scheduler(),
        Projector(LLM_WIDTH, 16, 20),
        pooled,
    )
    every = [(image, f"{'red ' * (i % 3)}") for i, (image, _) in enumerate(pairs(12))]
    every = [(image, text or "nothing") for image, text in every]
    path = str(write_shards(tmp_path, "parquet", [every]))
    config = LongCaptionConfig((path,), batch_size=3, resolution=80, pool_size=20, num_held_out=1)
    task = LongCaptionTask(build_llm_diffusion(captioner, decoder), config)
    assert task.data.buckets == ((64, 96), (64, 112), (80, 80), (96, 64), (112, 64))
    samples = next(
        batch for batch in iter(task.data.next_batch, None) if len({s.caption for s in batch}) > 1
    )
    encoded = [task._encode(sample) for sample in samples]
    latents, noise = (
        torch.stack([e.latents for e in encoded]),
        torch.randn(3, *encoded[0].latents.shape),
    )
    states, sigmas = [e.states for e in encoded], torch.tensor([0.2, 0.5, 0.8])
    with torch.no_grad():
        by_hand = []
        for i in range(3):
            one = slice(i, i + 1)
            embeds = decoder.condition(
                states[i][None], torch.ones(1, len(states[i]), dtype=torch.bool)
            )
            velocity = decoder.velocity(add_noise(latents, noise, sigmas)[one], sigmas[one], embeds)
            by_hand.append(flow_matching_loss(velocity, latents[one], noise[one]).item())
        assert flow_loss(decoder, latents, states, sigmas, noise).item() == pytest.approx(
            sum(by_hand) / 3, rel=1e-5
        )


@pytest.mark.parametrize("wanted", [None, 3.0])
def test_the_model_is_guided_from_then_on_if_so_wanted(
    data: str, tmp_path: Path, wanted: float | None
):
    before = tiny().decoding
    make(data, guidance_scale=wanted).export(tmp_path)
    assert load_model(str(tmp_path)).decoding == replace(
        before, guidance_scale=wanted or before.guidance_scale
    )


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="caption-dropout: expected at least 0 and below 1"):
        LongCaptionConfig(("x",), caption_dropout=1.0)
    with pytest.raises(ValueError, match="num-held-out: expected at least 1"):
        LongCaptionConfig(("x",), num_held_out=0)
