"""Adapters of every kind that peft writes: on a model of ours they say what they say in peft, or
they are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.models.real_layouts import large_like_transformer, write_qwen
from uae.models.encoders.qwen_vl import QwenVL
from uae.models.lora import Adapters
from uae.models.peft_adapter import merge, put_on, read_adapter

IDS = torch.arange(20)[None]
FIRST = "model.language_model.layers.0.self_attn.q_proj"
PLAIN = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {FIRST: 5}, "alpha_pattern": {"v_proj": 9, rf"{FIRST}": 2}},
    "orthogonal": {"init_lora_weights": "orthogonal", "r": 4},
    "by expression": {"target_modules": r".*language_model.*\.(up|down)_proj"},
    "all layers": {"target_modules": "all-linear"},
    "one layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
}
MERGED = {
    "dora": {"use_dora": True},
    "biases of its layers": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "a bias beside B": {"lora_bias": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "a whole head": {"modules_to_save": ["lm_head"]},
    "whole embeddings": {"modules_to_save": ["embed_tokens"]},
    "both, tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "norms": {"modules_to_save": ["norm"]},
    "a module of modules": {"modules_to_save": ["visual.merger"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "a head": {"target_modules": ["lm_head", "q_proj"]},
    "rows of tokens": {"trainable_token_indices": [1, 5]},
    "biases and dora with patterns": {
        "bias": "lora_only",
        "use_dora": True,
        "alpha_pattern": {"v_proj": 9},
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return write_qwen(tmp_path_factory.mktemp("base") / "qwen")


def load(base: Path, dtype: torch.dtype = torch.float32) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(base, dtype=dtype).eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def train(base: Path, folder: Path, options: dict) -> Tensor:
    """An adapter that moved all it may, saved by peft; what the model answers with it on."""
    defaults = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
    model = get_peft_model(load(base), LoraConfig(**(defaults | options)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return logits(model)


@pytest.mark.parametrize("options", (PLAIN | MERGED).values(), ids=(PLAIN | MERGED).keys())
def test_it_says_what_it_says_in_peft(base: Path, tmp_path: Path, options: dict):
    wanted = train(base, tmp_path / "adapter", options)
    assert (logits(load(base)) - wanted).abs().max() > 1
    model = load(base)
    put_on(Adapters(model), model, tmp_path / "adapter")
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=0)

    merged = load(base)
    adapter = read_adapter(tmp_path / "adapter", merged)
    assert adapter.is_plain == (options in PLAIN.values())
    merge(merged, adapter)
    torch.testing.assert_close(logits(merged), wanted, atol=1e-4, rtol=0)
    merged.save_pretrained(tmp_path / "merged")  # a head that is tied no more is written too
    torch.testing.assert_close(logits(load(tmp_path / "merged")), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "kind", ["plain", "patterns", "biases of its layers", "whole embeddings", "rows of tokens"]
)
def test_names_of_older_releases_are_found(base: Path, tmp_path: Path, kind: str):
    """The language model lay directly in ``model`` when the published adapters were trained."""
    options = (PLAIN | MERGED)[kind]
    wanted = train(base, tmp_path, options)
    file, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    old = {
        name.replace("model.language_model.", "model."): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(old, file)
    config.write_text(config.read_text().replace("model.language_model.", "model."))
    model = load(base)
    put_on(Adapters(model), model, tmp_path)
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=0)


def test_a_plain_one_stays_beside_the_weights(base: Path, tmp_path: Path):
    train(base, tmp_path, PLAIN["patterns"])
    encoder = QwenVL.from_pretrained(base)
    put_on(encoder.adapters, encoder.model, tmp_path)
    lora = encoder.adapters.read(encoder.adapters.active)
    assert lora is not None and lora.rank == 5
    down, up = lora.factors[FIRST]
    file = load_file(tmp_path / "adapter_model.safetensors")
    pair = (file[f"base_model.model.{FIRST}.lora_{half}.weight"] for half in "AB")
    a, b = pair
    torch.testing.assert_close(lora.scale * up @ down, 2 / 5 * b @ a)
    weights = encoder.adapters.without(as_copy=True).state_dict()
    assert all(
        torch.equal(weights[name], tensor) for name, tensor in load(base).state_dict().items()
    )


@pytest.mark.parametrize(
    "options", [{}, {"bias": "all"}, {"use_dora": True}, {"modules_to_save": ["proj_out"]}]
)
def test_the_transformer_takes_them_too(tmp_path: Path, options: dict):
    base = large_like_transformer()
    base.save_pretrained(tmp_path / "dit")
    inputs = {
        "hidden_states": torch.randn(1, 16, 8, 8),
        "timestep": torch.tensor([500.0]),
        "return_dict": False,
        "encoder_hidden_states": torch.randn(1, 3, 20),
        "pooled_projections": torch.randn(1, 14),
    }
    adapted = get_peft_model(
        base, LoraConfig(r=3, target_modules=["to_q", "add_k_proj"], **options)
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        wanted = adapted(**inputs)[0]
        adapted.save_pretrained(tmp_path / "lora")
        model = type(base).from_pretrained(tmp_path / "dit")
        assert (model(**inputs)[0] - wanted).abs().max() > 0.01
        put_on(Adapters(model), model, tmp_path / "lora")
        torch.testing.assert_close(model(**inputs)[0], wanted, atol=1e-4, rtol=1e-4)


def test_in_bf16_it_is_added_in_fp32_and_rounded_once(base: Path, tmp_path: Path):
    train(base, tmp_path, MERGED["biases of its layers"])
    model = load(base, torch.bfloat16)
    before = dict(load(base).named_parameters())[f"{FIRST}.weight"]
    merge(model, read_adapter(tmp_path, model))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    file = load_file(tmp_path / "adapter_model.safetensors")
    down, up = (file[f"base_model.model.{FIRST}.lora_{half}.weight"] for half in "AB")
    wanted = before + 2 * up @ down
    assert torch.equal(model.get_submodule(FIRST).weight, wanted.bfloat16())
    assert not hasattr(model, "peft_config")


OTHER = {
    "IA3": IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    "LOHA": LoHaConfig(r=2, target_modules=["q_proj"]),
    "PROMPT_TUNING": PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=2,
        token_dim=64,
        num_layers=2,
        num_attention_heads=4,
    ),
}


@pytest.mark.parametrize("kind", OTHER)
def test_other_methods_are_refused_by_name(base: Path, tmp_path: Path, kind: str):
    get_peft_model(load(base), OTHER[kind]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"expected an adapter of LoRA, got {kind}"):
        read_adapter(tmp_path, load(base))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_replication": [[0, 2], [1, 2]]}, "got layer_replication"),
        ({"target_parameters": ["mlp.experts"]}, "got target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "got pissa_niter_4; convert it"),
        ({"lora_alpha": "much"}, "adapter_config.json can't be read as an adapter's settings"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(
    base: Path, tmp_path: Path, change: dict, message: str
):
    train(base, tmp_path, {})
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ValueError, match=message) as error:
        read_adapter(tmp_path, load(base))
    assert "\n" not in str(error.value)


def unknown_layer(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.model.language_model.layers.7.self_attn.q_proj.lora_A.weight"] = (
        torch.zeros(3, 64)
    )


def without_b(tensors: dict[str, Tensor]) -> None:
    del tensors[f"base_model.model.{FIRST}.lora_B.weight"]


def wider(tensors: dict[str, Tensor]) -> None:
    tensors[f"base_model.model.{FIRST}.lora_A.weight"] = torch.zeros(3, 65)


def not_a_number(tensors: dict[str, Tensor]) -> None:
    tensors[f"base_model.model.{FIRST}.lora_A.weight"][0, 0] = float("nan")


def of_no_method(tensors: dict[str, Tensor]) -> None:
    tensors[f"base_model.model.{FIRST}.gate"] = torch.zeros(3)


def no_pairs(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        del tensors[name]
    tensors["base_model.model.lm_head.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    "damage", [unknown_layer, without_b, wider, not_a_number, of_no_method, no_pairs]
)
def test_what_does_not_fit_is_refused_by_name(base: Path, tmp_path: Path, damage):
    train(base, tmp_path, {})
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: expected") as error:
        read_adapter(tmp_path, load(base))
    assert "\n" not in str(error.value)


def test_a_missing_whole_module_is_refused(base: Path, tmp_path: Path):
    train(base, tmp_path, MERGED["a whole head"])
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "lora_" in name}, file)
    model = load(base)
    with pytest.raises(ValueError, match="can't be read as an adapter of this model"):
        put_on(Adapters(model), model, tmp_path)
