"""The released folder layout: what it loads as equals its parts with their adapters on; what is
missing is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.models.real_layouts import (
    QWEN_WIDTH,
    large_like_transformer,
    large_like_vae,
    write_qwen,
    write_sd3,
)
from uae.config import DecodeSettings
from uae.models.connectors import Projector
from uae.models.encoders.qwen_vl import QwenVL
from uae.models.llm_diffusion import LLMDiffusion
from uae.models.load import load_model
from uae.utils.weights import stored_dtype

TEXTS = ["A red circle is to the left."]


def write_dit(root: Path) -> SD3Transformer2DModel:
    """``dit/`` and ``dit_lora/``; the transformer with its adapter on."""
    transformer = large_like_transformer()
    transformer.save_pretrained(root / "dit")
    config = LoraConfig(
        r=3, lora_alpha=6, init_lora_weights=False, target_modules=["to_q", "add_k_proj"]
    )
    adapted = get_peft_model(transformer, config)
    adapted.save_pretrained(root / "dit_lora")
    return adapted


def write_llm(root: Path) -> QwenVL:
    """``llm_model/`` and ``llm_lora/``, the latter under the names of the time; the encoder with
    its adapter on."""
    encoder = QwenVL.from_pretrained(write_qwen(root / "llm_model"))
    names = r".*language_model.*\.(q_proj|v_proj|up_proj)"
    adapted = get_peft_model(encoder.model, LoraConfig(r=2, lora_alpha=4, target_modules=names))
    with torch.no_grad():
        for name, parameter in encoder.named_trainable_parameters().items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(root / "llm_lora")
    file = root / "llm_lora" / "adapter_model.safetensors"
    save_file(
        {name.replace("language_model.", ""): tensor for name, tensor in load_file(file).items()},
        file,
    )
    return encoder


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> tuple[Path, QwenVL, SD3Transformer2DModel, Projector]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("uae")
    write_sd3(root / "SD3", large_like_transformer(), large_like_vae())
    projector = Projector(QWEN_WIDTH, 40, 20)
    names = {
        name.replace("layers", "mlp"): tensor for name, tensor in projector.state_dict().items()
    }
    save_file(names, root / "projector.safetensors")
    return root, write_llm(root), write_dit(root), projector


@torch.no_grad()
def test_the_released_layout_loads_as_its_parts(release, tmp_path):
    root, encoder, transformer, projector = release
    model = load_model(str(root))
    assert isinstance(model, LLMDiffusion)
    expected, mask = encoder.text_states(TEXTS)
    states, _ = model.text_states(TEXTS)
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)
    assert (
        QwenVL.from_pretrained(root / "llm_model").text_states(TEXTS)[0] - expected
    ).abs().max() > 0.01
    embeds = model.decoder.condition(states, mask).embeds
    torch.testing.assert_close(embeds[0], projector(expected[0]), atol=1e-4, rtol=1e-4)

    inputs = {
        "hidden_states": torch.randn(1, 16, 8, 8),
        "timestep": torch.tensor([500.0]),
        "return_dict": False,
        "encoder_hidden_states": embeds,
        "pooled_projections": model.decoder.pooled[None],
    }
    merged, adapted = model.decoder.transformer(**inputs)[0], transformer(**inputs)[0]
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    with transformer.disable_adapter():
        assert (transformer(**inputs)[0] - adapted).abs().max() > 1e-3

    model.save_pretrained(tmp_path)  # and from here on in this package's own layout
    again = load_model(str(tmp_path))
    torch.testing.assert_close(again.decoder.condition(states, mask).embeds, embeds)


def test_each_part_of_a_large_release_is_computed_with_as_it_is_stored(release, monkeypatch):
    monkeypatch.setattr("uae.models.load.SMALL_BYTES", 0)
    root, _, _, _ = release
    model: Any = load_model(str(root))
    assert model.encoder.model.dtype == stored_dtype(root / "llm_model")
    assert model.decoder.transformer.dtype == stored_dtype(root / "dit")
    assert model.decoder.vae.dtype == stored_dtype(root / "SD3" / "vae") == torch.bfloat16
    assert model.decoder.projector.dtype == stored_dtype(root) == torch.float32
    images = model.generate(TEXTS, DecodeSettings(2, height=64, width=64)).images
    assert images.isfinite().all()


def test_missing_parts_are_named_together(release, tmp_path):
    root = tmp_path / "release"
    shutil.copytree(release[0], root)
    shutil.rmtree(root / "dit_lora")
    shutil.rmtree(root / "SD3" / "transformer")  # not needed: dit/ takes its place
    (root / "projector.safetensors").unlink()
    (root / "llm_lora" / "adapter_model.safetensors").unlink()
    (root / "SD3" / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match="expected the released layout") as error:
        load_model(str(root))
    for part in (
        "dit_lora/",
        "llm_lora/adapter_model.safetensors",
        "SD3/vae/config.json",
        "projector/ or one of",
    ):
        assert part in str(error.value)
    assert (
        "SD3/transformer" not in str(error.value)
        and "llm_model" not in str(error.value).rsplit("missing ", 1)[1]
    )


def test_parts_that_do_not_fit_are_refused(release, tmp_path):
    root = tmp_path / "release"
    shutil.copytree(release[0], root)
    save_file(
        {"a.weight": torch.zeros(4, 5), "b.weight": torch.zeros(5, 4)},
        root / "projector.safetensors",
    )
    with pytest.raises(ValueError, match="first taking the LLM's width 64"):
        load_model(str(root))
    config = json.loads((root / "llm_lora" / "adapter_config.json").read_text())
    (root / "llm_lora" / "adapter_config.json").write_text(
        json.dumps(config | {"peft_type": "IA3"})
    )
    with pytest.raises(ValueError, match="expected an adapter of LoRA, got IA3"):
        load_model(str(root))
    shutil.copytree(root / "dit_lora", root / "llm_lora", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="fits none of its layers"):
        load_model(str(root))
