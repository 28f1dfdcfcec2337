"""The folder layout in which the paper's authors released UMM-1 (arXiv 2509.09666), loaded as
``LLMDiffusion``.

    llm_model/   Qwen2.5-VL-3B, as ``Qwen2_5_VLForConditionalGeneration`` saves it, with tokenizer
                 and image processor
    llm_lora/    its adapter, as ``peft`` saves it
    SD3/         Stable Diffusion 3.5 in diffusers' layout; VAE, scheduler and the CLIP text
                 encoders are read
    dit/         the trained MM-DiT, as ``SD3Transformer2DModel`` saves it
    dit_lora/    its adapter, as ``peft`` saves it
    projector    ``projector/`` as ``Projector`` saves it, or a file ``projector.safetensors``,
                 ``.pt`` or ``.bin`` with the two linear layers, first layer first in name order,
                 under any names

The five folders' names are the release's. Where it keeps the projector is not known here: that line
is our choice. Plain LoRA stays beside the weights, as in all models here; other adapters are
merged, see ``peft_adapter``. Further training starts from the released model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from uae.models.connectors import Projector
from uae.models.decoders import sd3_files
from uae.models.decoders.sd3 import SD3Decoder
from uae.models.encoders.qwen_vl import QwenVL
from uae.models.llm_diffusion import LLMDiffusion
from uae.models.peft_adapter import missing_of_adapter, put_on
from uae.utils.weights import (
    CONFIG,
    SCHEDULER_CONFIG,
    load_part,
    load_pretrained,
    read_tensors,
)

FOLDERS = ("llm_model", "llm_lora", "SD3", "dit", "dit_lora")
PROJECTOR_FILES = ("projector.safetensors", "projector.pt", "projector.bin")


def is_paper_layout(folder: Path) -> bool:
    """Whether a folder is meant to be one: two of its parts suffice, so that what is missing can be
    named."""
    return sum((folder / part).is_dir() for part in FOLDERS) >= 2


def load_paper_layout(folder: Path, dtype: torch.dtype | None = torch.float32) -> LLMDiffusion:
    """The released model, adapters on. dtype: of all parts; None leaves each as it is stored.

    Raises:
        ValueError: naming every part that is missing, before any weights are read; or a part that
            does not fit.
    """
    if missing := missing_of_release(folder):
        raise ValueError(
            f"{folder}: expected the released layout ({', '.join(FOLDERS)} and the projector), "
            f"missing {'; '.join(missing)}; download the release again, whole"
        )
    encoder = QwenVL.from_pretrained(folder / "llm_model", dtype)
    put_on(encoder.adapters, encoder.model, folder / "llm_lora")
    stock = folder / "SD3"
    decoder = SD3Decoder(
        load_pretrained(SD3Transformer2DModel, folder / "dit", dtype),
        load_pretrained(AutoencoderKL, stock / "vae", dtype),
        load_part(FlowMatchEulerDiscreteScheduler, stock / "scheduler", SCHEDULER_CONFIG),
        _load_projector(folder, encoder.state_width, dtype),
        sd3_files.load_pooled(stock),
    )
    if dtype is not None:
        decoder = decoder.to(dtype)
    put_on(decoder.adapters, decoder.transformer, folder / "dit_lora")
    return LLMDiffusion(encoder, decoder.eval())


def missing_of_release(folder: Path) -> list[str]:
    """Each part that is not there in full, in words."""
    missing = [f"{part}/" for part in FOLDERS if not (folder / part).is_dir()]
    for part in ("llm_lora", "dit_lora"):
        if (folder / part).is_dir():
            missing += [f"{part}/{name}" for name in missing_of_adapter(folder / part)]
    if (folder / "llm_model").is_dir() and not (folder / "llm_model" / CONFIG).is_file():
        missing.append("llm_model/config.json")
    if (folder / "dit").is_dir():
        missing += sd3_files.missing_files(folder / "dit")
    if (folder / "SD3").is_dir():
        parts = sd3_files.missing_parts(folder / "SD3", needs_projector=False)
        # dit/ takes the place of its transformer
        missing += [f"SD3/{part}" for part in parts if not part.startswith("transformer/")]
    if not (folder / "projector").is_dir() and not any(
        (folder / file).is_file() for file in PROJECTOR_FILES
    ):
        missing.append(f"projector/ or one of {', '.join(PROJECTOR_FILES)}")
    return missing


# --- the projector -------------------------------------------------------------------------------


def _load_projector(folder: Path, llm_width: int, dtype: torch.dtype | None) -> Projector:
    if (folder / "projector").is_dir():
        return load_pretrained(Projector, folder / "projector", dtype)
    file = next(folder / name for name in PROJECTOR_FILES if (folder / name).is_file())
    tensors = read_tensors(file)
    names = sorted(tensors)
    weights = [tensors[name] for name in names if tensors[name].ndim == 2]
    biases = [tensors[name] for name in names if tensors[name].ndim == 1]
    if not _are_two_layers(weights, biases, llm_width):
        shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in names)
        raise ValueError(
            f"{file}: expected two linear layers, the first taking the LLM's width {llm_width}, "
            f"got {shapes}; give the projector of this model"
        )
    projector: Any = Projector(llm_width, len(weights[0]), len(weights[1]))
    for layer, weight, bias in zip(
        (projector.layers[0], projector.layers[2]), weights, biases, strict=True
    ):
        layer.load_state_dict({"weight": weight, "bias": bias})
    is_single = weights[0].dtype in (torch.float32, torch.float64)
    return projector.to(dtype or (torch.float32 if is_single else torch.bfloat16))


def _are_two_layers(weights: list[Tensor], biases: list[Tensor], llm_width: int) -> bool:
    if len(weights) != 2 or [len(bias) for bias in biases] != [len(weight) for weight in weights]:
        return False
    return weights[0].shape[1] == llm_width and weights[1].shape[1] == weights[0].shape[0]
