"""The folder layout in which the paper's authors released UMM-1 (arXiv 2509.09666), loaded as ``LLMDiffusion``.

    llm_model/   Qwen2.5-VL-3B, as ``Qwen2_5_VLForConditionalGeneration`` saves it, with tokenizer and image processor
    llm_lora/    its adapter, as ``peft`` saves it
    SD3/         Stable Diffusion 3.5 in diffusers' layout; VAE, scheduler and the CLIP text encoders are read
    dit/         the trained MM-DiT, as ``SD3Transformer2DModel`` saves it
    dit_lora/    its adapter, as ``peft`` saves it
    projector    ``projector/`` as ``Projector`` saves it, or a file ``projector.safetensors``, ``.pt`` or ``.bin`` with
                 the two linear layers, first layer first in name order, under any names

The five folders' names are the release's. Where it keeps the projector is not known here: that line is our choice.
Adapters are merged: further training starts from the released model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor, nn

from uae.models import sd3_files
from uae.models.llm_diffusion import LLMDiffusion
from uae.models.projector import Projector
from uae.models.qwen_vl import QwenVL
from uae.models.sd3 import SD3Decoder
from uae.models.storage import stored_dtype

PARTS = ("llm_model", "llm_lora", "SD3", "dit", "dit_lora")
PROJECTOR_FILES = ("projector.safetensors", "projector.pt", "projector.bin")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def is_paper_layout(folder: Path) -> bool:
    """Whether a folder is meant to be one: two of its parts suffice, so that what is missing can be named."""
    return sum((folder / part).is_dir() for part in PARTS) >= 2


def load_paper_layout(folder: Path, dtype: torch.dtype | None = torch.float32) -> LLMDiffusion:
    """The released model, adapters merged.

    Raises:
        ValueError: naming every part that is missing, before any weights are read; or a part that does not fit.
    """
    if missing := missing_parts(folder):
        raise ValueError(f"{folder}: expected the released layout ({', '.join(PARTS)} and the projector), "
                         f"missing {'; '.join(missing)}; download the release again, whole")  # fmt: skip
    dtype = dtype or stored_dtype(folder / "dit")
    encoder = QwenVL.from_pretrained(folder / "llm_model", dtype)
    merge_adapter(encoder.model, folder / "llm_lora")
    transformer = SD3Transformer2DModel.from_pretrained(folder / "dit", torch_dtype=dtype)
    merge_adapter(transformer, folder / "dit_lora")
    stock = folder / "SD3"
    decoder = SD3Decoder(
        transformer,  # type: ignore[arg-type]
        AutoencoderKL.from_pretrained(stock / "vae", torch_dtype=dtype),  # type: ignore[arg-type]
        FlowMatchEulerDiscreteScheduler.from_pretrained(stock / "scheduler"),  # type: ignore[arg-type]
        _load_projector(folder, encoder.model.config.text_config.hidden_size),
        sd3_files.load_pooled(stock),
    )
    return LLMDiffusion(encoder, decoder.to(dtype).eval())


def missing_parts(folder: Path) -> list[str]:
    """Each part that is not there in full, in words."""
    missing = [f"{part}/" for part in PARTS if not (folder / part).is_dir()]
    for part in ("llm_lora", "dit_lora"):
        if (folder / part).is_dir():
            missing += [f"{part}/{file}" for file in ADAPTER_FILES if not (folder / part / file).is_file()]
    if (folder / "llm_model").is_dir() and not (folder / "llm_model" / "config.json").is_file():
        missing.append("llm_model/config.json")
    if (folder / "dit").is_dir():
        missing += sd3_files.missing_files(folder / "dit")
    if (folder / "SD3").is_dir():
        missing += [f"SD3/{part}" for part in _missing_of_stock(folder / "SD3")]
    if not (folder / "projector").is_dir() and not any((folder / file).is_file() for file in PROJECTOR_FILES):
        missing.append(f"projector/ or one of {', '.join(PROJECTOR_FILES)}")
    return missing


def _missing_of_stock(folder: Path) -> list[str]:
    parts = sd3_files.missing_parts(folder, needs_projector=False)
    return [part for part in parts if not part.startswith("transformer/")]  # dit/ takes its place


# --- adapters --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def merge_adapter(model: nn.Module, folder: Path) -> None:
    """``W ← W + (alpha / r) B A`` for each pair in a ``peft`` adapter, whichever release of the class named it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    if any(config.get(option) for option in ("use_dora", "rank_pattern", "alpha_pattern")):
        raise ValueError(f"{folder}: expected plain LoRA with one rank, got DoRA or a pattern of ranks; "
                         "merge it with peft and give the merged model")  # fmt: skip
    tensors = load_file(folder / "adapter_model.safetensors")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    for key, down in tensors.items():
        if ".lora_A" not in key:
            continue
        up = tensors.get(key.replace(".lora_A", ".lora_B"))
        layer = _layer_of(key, layers)
        if up is None or layer is None or layer.weight.shape != (up.shape[0], down.shape[1]):
            raise ValueError(f"{folder}: expected an adapter of this model, {key} fits none of its linear layers; "
                             "take model and adapter from one release")  # fmt: skip
        scale = config["lora_alpha"] / (math.sqrt(len(down)) if config.get("use_rslora") else len(down))
        layer.weight += (scale * up.float() @ down.float()).to(layer.weight)


def _layer_of(key: str, layers: dict[str, nn.Linear]) -> nn.Linear | None:
    """The layer that an adapter's tensor belongs to; older releases had the language model directly in ``model``."""
    name = key.split(".lora_A")[0].removeprefix("base_model.model.").removeprefix("transformer.")
    renamed = (name, name.replace("model.layers.", "model.language_model.layers."), f"model.{name}")
    return next((layers[candidate] for candidate in renamed if candidate in layers), None)


# --- the projector ---------------------------------------------------------------------------------------------------


def _load_projector(folder: Path, llm_width: int) -> Projector:
    if (folder / "projector").is_dir():
        projector = Projector.from_pretrained(folder / "projector")
        assert isinstance(projector, Projector)
        return projector
    file = next(folder / name for name in PROJECTOR_FILES if (folder / name).is_file())
    tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    names = sorted(tensors)
    weights = [tensors[name] for name in names if tensors[name].ndim == 2]
    biases = [tensors[name] for name in names if tensors[name].ndim == 1]
    if not _are_two_layers(weights, biases, llm_width):
        shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in names)
        raise ValueError(f"{file}: expected two linear layers, the first taking the LLM's width {llm_width}, "
                         f"got {shapes}; give the projector of this model")  # fmt: skip
    projector = Projector(llm_width, len(weights[0]), len(weights[1]))
    for layer, weight, bias in zip((projector.layers[0], projector.layers[2]), weights, biases, strict=True):
        layer.load_state_dict({"weight": weight, "bias": bias})
    return projector


def _are_two_layers(weights: list[Tensor], biases: list[Tensor], llm_width: int) -> bool:
    if len(weights) != 2 or [len(bias) for bias in biases] != [len(weight) for weight in weights]:
        return False
    return weights[0].shape[1] == llm_width and weights[1].shape[1] == weights[0].shape[0]
