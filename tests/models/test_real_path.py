"""The real path: a whole step of Unified-GRPO from folders laid out exactly as the published
checkpoints are."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.models.real_layouts import (
    SPECIAL_TOKENS,
    large_like_transformer,
    large_like_vae,
    write_clip,
    write_qwen,
    write_sd3,
)
from tests.models.real_runs import assert_resumed_is_uninterrupted
from uae.bench.reconstruct import ReconstructImages
from uae.bench.run import answer_items
from uae.config import CaptionOptions, CaptionSettings, DecodeOptions, DecodeSettings
from uae.images.write import save_png
from uae.models.llm_diffusion import LLMDiffusion
from uae.models.load import load_model
from uae.rewards.base import WeightedSum
from uae.rewards.reconstruction import ReconstructionReward
from uae.rl.config import TrainConfig
from uae.rl.losses import Objective
from uae.rl.train import train
from uae.similarity.backbones import load_backbone
from uae.stages.recipes import RECIPES
from uae.utils.checkpoint import load_latest
from uae.world.data import SceneImages

METRICS = {
    "reward/total",
    "reward/clip",
    "reward/fixed_captions",
    "caption/tokens",
    "rl/kl",
    "rl/entropy",
    "rl/clip_frac",
    "rl/grad_norm",
    "rl/lr",
    "time/rollout",
    "time/reward",
    "time/update",
}
NEGATIVE_PROMPT = "a red circle"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "encoder": write_qwen(root / "Qwen2.5-VL-3B-Instruct"),
        "decoder": write_sd3(
            root / "stable-diffusion-3.5-large", large_like_transformer(), large_like_vae()
        ),
        "clip": write_clip(root / "clip-vit-large-patch14"),
    }


def load(folders: dict[str, Path], lora_rank: int = 4) -> LLMDiffusion:
    model = load_model(f"{folders['encoder']}+{folders['decoder']}", torch.bfloat16)
    assert isinstance(model, LLMDiffusion)
    model.begin_training(lora_rank, captions=True, decoding=DecodeSettings())
    model.negative_prompt = NEGATIVE_PROMPT
    return model


def run(model: LLMDiffusion, folders: dict[str, Path], folder: Path, until: int) -> list[dict]:
    """Train as the preset ``paper`` does, at 64 pixels; the log so far."""
    config = TrainConfig(
        num_steps=2,
        images_per_step=1,
        group_size=4,
        captioning=CaptionSettings(instruction="Describe this image in detail.", max_new_tokens=6),
        decoding=DecodeSettings(
            num_steps=2, guidance_scale=5.0, height=64, width=64, micro_batch=3
        ),
        objective=Objective(kl_coef=1e-6),
        learning_rate=1e-2,
        micro_batch=3,
    )
    reward = WeightedSum(
        {"clip": (1.0, ReconstructionReward(load_backbone("clip", folders["clip"])))}
    )
    train(model, reward, SceneImages(), config, folder, {"model": "test"}, until=until)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_checkpoints_load_whole(folders):
    """Every published tensor arrives, unchanged; the limits, ends, template and special tokens are
    the files'."""
    model = load_model(f"{folders['encoder']}+{folders['decoder']}", torch.bfloat16)
    encoder, decoder = model.encoder, model.decoder
    files = sorted(folders["encoder"].glob("model-0000*-of-00002.safetensors"))
    published = load_file(files[0]) | load_file(files[1])
    state = encoder.model.state_dict()
    assert "lm_head.weight" not in published  # tied to the embeddings
    assert torch.equal(state["lm_head.weight"], published["model.embed_tokens.weight"])
    for name, tensor in published.items():
        ours = (
            f"model.{name}"
            if name.startswith("visual.")
            else name.replace("model.", "model.language_model.", 1)
        )
        assert torch.equal(state[ours], tensor), name
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    limits = encoder.image_settings
    assert (limits.min_pixels, limits.max_pixels) == (3136, 12845056) and limits.mean[
        0
    ] == pytest.approx(0.48145466)
    ids = {token: encoder.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    assert encoder.end_ids == sorted([ids["<|endoftext|>"], ids["<|im_end|>"]])
    assert encoder.image_pad_id == encoder.model.config.image_token_id == ids["<|image_pad|>"]
    said = encoder.tokenizer.decode(encoder.chat([{"role": "generate", "content": "A red circle"}]))
    assert said == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>generate\nA red circle<|im_end|>\n<|im_start|>assistant\n"
    )
    assert decoder.text_length is None and decoder.scheduler.config["shift"] == 3.0
    assert decoder.noise_shape(64, 64) == (16, 8, 8)
    again = load_model(f"{folders['encoder']}+{folders['decoder']}", torch.bfloat16)
    for name, tensor in snapshot(
        decoder.projector
    ).items():  # untrained, but the same for whoever resumes
        assert torch.equal(tensor, again.decoder.projector.state_dict()[name]), name


@pytest.mark.slow
def test_a_step_moves_lora_and_nothing_else(folders, tmp_path):
    model = load(folders)
    encoder = model.encoder
    assert {p.dtype for p in encoder.named_trainable_parameters().values()} == {
        torch.float32
    }  # of a bf16 model
    assert (
        len(encoder.named_trainable_parameters()) == 2 * 7 * 2
    )  # A and B of 7 linear layers in each of 2 blocks
    base, decoder = snapshot(encoder.model), snapshot(model.decoder)
    (metrics,) = run(model, folders, tmp_path, until=1)
    moved = {
        name
        for name, tensor in encoder.model.state_dict().items()
        if not torch.equal(tensor, base[name])
    }
    assert moved and all(".lora_" in name for name in moved)
    assert {
        name for name in base if ".lora_B" in name
    } <= moved  # A waits for B, which starts at zero
    assert not any("visual" in name for name in base if "lora" in name)
    for name, tensor in model.decoder.state_dict().items():
        assert torch.equal(tensor, decoder[name]), name

    assert metrics.keys() >= METRICS
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))
    assert -1 <= metrics["reward/total"] <= 1 and metrics["rl/grad_norm"] > 0
    assert metrics["rl/kl"] == pytest.approx(0, abs=1e-4)  # adapters start as the reference
    assert 1 <= metrics["caption/tokens"] <= 6


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(folders, tmp_path):
    assert_resumed_is_uninterrupted(
        lambda: load(folders),
        lambda model, folder, until: run(model, folders, folder, until),
        tmp_path,
    )


FLOW_GRPO = {"decoder_update": "policy_gradient", "num_updates": 2, "image_kl_coef": 0.04}
RANDOM_STEPS = {"sampler": "sde", "window_size": 2, "guidance_scale": 4.5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "steps", "logged"),
    [({}, {}, "velocity_norm_ratio"), (FLOW_GRPO, RANDOM_STEPS, "log_prob_gap")],
    ids=["as the preset", "Flow-GRPO"],
)
def test_the_decoder_learns_by_lora_and_nothing_else(folders, tmp_path, changes, steps, logged):
    """At 64 pixels, with an average: as the preset ``decoder`` does, by AWM; and with guidance, a
    KL and two updates."""
    preset = RECIPES["decoder"].stage.settings.train
    config = replace(
        preset,
        num_steps=2,
        images_per_step=2,
        reconstructions_per_caption=3,
        captioning=replace(preset.captioning, max_new_tokens=6),
        decoding=replace(preset.decoding, num_steps=3, height=64, width=64, **steps),
        **changes,
    )
    model = load_model(f"{folders['encoder']}+{folders['decoder']}", torch.bfloat16)
    model.begin_training(4, captions=False, decoding=config.decoding_at(0))
    base = snapshot(model)
    reward = WeightedSum(
        {"clip": (1.0, ReconstructionReward(load_backbone("clip", folders["clip"])))}
    )
    train(model, reward, SceneImages(), config, tmp_path, {"model": "test"}, until=1)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(line)
    assert metrics["rl/grad_norm"] > 0 and "rl/kl" not in metrics
    assert 0 <= metrics[f"rl_image/{logged}"] < {"log_prob_gap": 0.1}.get(logged, 1.1)  # bf16
    assert ("rl_image/kl" in metrics) == bool(changes)
    raw = load_latest(tmp_path / "checkpoints")
    assert raw is not None and all(
        name.startswith("decoder.") and ".lora_" in name for name in raw.weights["policy"]
    )
    untouched = {name: tensor for name, tensor in snapshot(model).items() if ".lora_" not in name}
    assert all(torch.equal(tensor, base[name]) for name, tensor in untouched.items())


def test_captions_of_several_lengths_are_painted_with_guidance(folders):
    """Without a text_length pictures go by length, and guidance leads away from the negative
    prompt."""
    model = load(folders)
    settings = DecodeSettings(num_steps=2, guidance_scale=5.0, height=64, width=64, micro_batch=2)
    texts = ["A red circle", "A small blue square on a grey background.", "A red circle", ""]
    images = model.generate(texts, settings, seed=3).images
    assert (
        images.shape == (4, 3, 64, 64) and images.dtype == torch.float32 and images.isfinite().all()
    )
    alone = model.generate(texts[:1], settings, seed=3).images
    torch.testing.assert_close(images[:1], alone, atol=0.02, rtol=0)  # bf16
    model.negative_prompt = "A small blue square on a grey background."
    assert (model.generate(texts[:1], settings, seed=3).images - alone).abs().max() > 1e-3


def test_reconstruct_takes_them_in_bf16_as_published(folders, tmp_path):
    """In detail, with the paper's guidance; a stock decoder's projector is untrained, which is
    said."""
    save_png(tmp_path / "noise.png", torch.rand(3, 70, 50))
    task = ReconstructImages(
        (str(tmp_path / "noise.png"),),
        f"{folders['encoder']}+{folders['decoder']}",
        tmp_path / "out",
        CaptionOptions(max_new_tokens=6),
        DecodeOptions(num_steps=2, height=64, width=64),
    )
    with pytest.warns(UserWarning, match="starts untrained"):
        answers = answer_items(task, load_model)
    captioning, decoding = answers.settings["captioning"], answers.settings["decoding"]
    assert captioning["instruction"] == "Describe this image in detail."
    assert captioning["temperature"] == 0
    assert (decoding["guidance_scale"], decoding["height"]) == (5.0, 64)
    (trip,) = task.round_trips(answers).values()
    assert trip.reconstruction.shape == (3, 64, 64) and trip.reconstruction.isfinite().all()


def test_saved_and_loaded_again(folders, tmp_path):
    """What training writes at its end: the adapter, and the projector that stock checkpoints
    lack."""
    model = load(folders)
    with torch.no_grad():
        for name, parameter in model.encoder.named_trainable_parameters().items():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), torch.bfloat16)
    assert (
        not list(tmp_path.glob("encoder/*.safetensors"))
        and not (tmp_path / "decoder/transformer").exists()
    )
    assert loaded.negative_prompt == NEGATIVE_PROMPT
    texts = ["A red circle"]
    with torch.no_grad():
        (before, _), (after, _) = model.text_states(texts), loaded.text_states(texts)
        with model.encoder.reference():
            base, _ = model.text_states(texts)
    assert torch.equal(after, before) and not torch.equal(after, base)
    assert torch.equal(
        loaded.decoder.projector.layers[0].weight, model.decoder.projector.layers[0].weight
    )
