"""UMM-2's real path: a step of Unified-GRPO from a folder laid out exactly as a published Janus-Pro
is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.models.real_layouts import JANUS_BOS, JANUS_EOS, JANUS_SIDE, write_clip, write_janus
from tests.models.real_runs import assert_resumed_is_uninterrupted
from uae.config import DecodeSettings
from uae.models.janus import Janus
from uae.models.load import load_model
from uae.rewards.base import WeightedSum
from uae.rewards.reconstruction import ReconstructionReward
from uae.rl.train import train
from uae.similarity.backbones import load_backbone
from uae.stages.recipes import RECIPES
from uae.world.data import SceneImages


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "janus": write_janus(root / "Janus-Pro-7B"),
        "clip": write_clip(root / "clip-vit-large-patch14"),
    }


def load(folders: dict[str, Path]) -> Janus:
    model = load_model(str(folders["janus"]), torch.bfloat16)
    assert isinstance(model, Janus)
    model.begin_training(4, captions=True, decoding=DecodeSettings())
    return model


def run(model: Janus, folders: dict[str, Path], folder: Path, until: int) -> list[dict]:
    """Train as the preset ``janus`` does, on pictures of this model's size; the log so far."""
    preset = RECIPES["janus"].stage.settings.train
    config = replace(
        preset,
        num_steps=2,
        group_size=4,
        captioning=replace(preset.captioning, max_new_tokens=6),
        decoding=replace(preset.decoding, height=JANUS_SIDE, width=JANUS_SIDE, micro_batch=3),
        learning_rate=1e-2,
    )
    reward = WeightedSum(
        {"clip": (1.0, ReconstructionReward(load_backbone("clip", folders["clip"])))}
    )
    train(model, reward, SceneImages(), config, folder, {"model": "test"}, until=until)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_checkpoint_loads_whole(folders):
    """Every published tensor arrives, unchanged; ends, prompt and the token that begins an image
    are the files'."""
    model = load_model(str(folders["janus"]), torch.bfloat16)
    files = sorted(folders["janus"].glob("model-0000*-of-00002.safetensors"))
    published = load_file(files[0]) | load_file(files[1])
    state = model.encoder.model.state_dict()
    assert published.keys() == state.keys()
    assert not torch.equal(
        published["lm_head.weight"], published["model.language_model.embed_tokens.weight"]
    )
    for name, tensor in published.items():
        assert torch.equal(state[name], tensor) and tensor.dtype == torch.bfloat16, name
    ids = {
        token: model.encoder.tokenizer.convert_tokens_to_ids(token)
        for token in (JANUS_EOS, "<begin_of_image>")
    }
    assert (
        model.encoder.end_ids == [ids[JANUS_EOS]]
        and model.encoder.boi_id == ids["<begin_of_image>"]
    )
    said = model.encoder.tokenizer.decode(model.encoder.prompt("What is it?", 3))
    assert said.startswith(f"{JANUS_BOS}You are a helpful language and vision assistant.")
    pictured = "<begin_of_image>" + 3 * "<image_placeholder>" + "<end_of_image>"
    assert said.endswith(f"<|User|>: {pictured}\nWhat is it?\n\n<|Assistant|>:")
    asked = model.encoder.tokenizer.decode(model.encoder.paint_prompt("a red circle"))
    assert asked == f"{JANUS_BOS}<|User|>: a red circle\n\n<|Assistant|>:<begin_of_image>"


@pytest.mark.slow
def test_a_step_moves_lora_and_nothing_else(folders, tmp_path):
    model = load(folders)
    base = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    (metrics,) = run(model, folders, tmp_path, until=1)
    moved = {
        name
        for name, tensor in model.model.state_dict().items()
        if not torch.equal(tensor, base[name])
    }
    assert moved and all(".lora_" in name and "language_model" in name for name in moved)
    assert {
        "rl/kl",
        "rl_image/kl",
        "rl/grad_norm",
        "image/guidance_gap",
        "reward/clip",
    } <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))
    assert metrics["image/guidance_gap"] != 0


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(folders, tmp_path):
    assert_resumed_is_uninterrupted(
        lambda: load(folders),
        lambda model, folder, until: run(model, folders, folder, until),
        tmp_path,
    )


def test_saved_and_loaded_again(folders, tmp_path):
    """The adapter on its base; the output layer stays its own, though the published configuration
    does not say so."""
    model = load(folders)
    with torch.no_grad():
        for name, parameter in model.encoder.named_trainable_parameters().items():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    model.save_pretrained(tmp_path)
    loaded, base = (
        load_model(str(tmp_path), torch.bfloat16),
        load_model(str(folders["janus"]), torch.bfloat16),
    )
    loaded.merge_adapters()
    state, before = loaded.encoder.model.state_dict(), base.encoder.model.state_dict()
    assert torch.equal(state["lm_head.weight"], before["lm_head.weight"])
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("model.language_model.layers") for name in changed)
