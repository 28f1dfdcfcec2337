"""How large the real models are, and what a step of Unified-GRPO with them takes on one GPU;
nothing is loaded.

The architectures are built on the meta device, from configurations stated here, by the very classes
that load the checkpoints: parameter names, shapes and counts are exact. They are the published
``config.json`` of ``Qwen/Qwen2.5-VL-3B-Instruct``, ``stabilityai/stable-diffusion-3.5-large`` and
``-medium``; the projector is the paper's, 2048 → 8192 → 4096 (arXiv 2509.09666). Activations
are estimates, each with its formula; no formula was checked against a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from uae.models.connectors import Projector, projector_between

GPU_BYTES = 80e9
BF16, FP32 = 2, 4

QWEN_3B: dict[str, Any] = {
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    },
    "tie_word_embeddings": True,
}
_SD35: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}
SD35_LARGE = _SD35 | {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
}
SD35_MEDIUM = _SD35 | {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
}
SD35_TRANSFORMERS = {"large": SD35_LARGE, "medium": SD35_MEDIUM}
SD35_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


# --- full-size architectures, without memory -----------------------------------------------------


def meta_qwen() -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL-3B: vision tower and language model."""
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**QWEN_3B))


def meta_transformer(size: str = "large") -> SD3Transformer2DModel:
    """SD3.5's MM-DiT, ``large`` or ``medium``."""
    if size not in SD35_TRANSFORMERS:
        raise ValueError(
            f"expected a size of SD3.5 out of {', '.join(SD35_TRANSFORMERS)}, got {size!r}"
        )
    with torch.device("meta"):
        return SD3Transformer2DModel(**SD35_TRANSFORMERS[size])


def meta_vae() -> AutoencoderKL:
    """The autoencoder of both."""
    with torch.device("meta"):
        return AutoencoderKL(**SD35_VAE)


def meta_projector() -> Projector:
    """2048 → 8192 → 4096."""
    with torch.device("meta"):
        return projector_between(
            QWEN_3B["text_config"]["hidden_size"], _SD35["joint_attention_dim"]
        )


def count(module: nn.Module) -> int:
    """Parameters, those shared by two layers once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_lora(language_model: nn.Module, rank: int) -> int:
    """Parameters of LoRA on all its linear layers: ``rank (in + out)`` each."""
    linear = (module for module in language_model.modules() if isinstance(module, nn.Linear))
    return sum(rank * (layer.in_features + layer.out_features) for layer in linear)


# --- memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepShape:
    """What decides a step's memory besides the models."""

    decoder: str = "large"
    """SD3.5 ``large`` or ``medium``."""
    lora_rank: int = 32
    """0 trains the whole language model."""
    num_captions: int = 4
    """Captions of a rollout, images times group size."""
    caption_tokens: int = 512
    """The cap on caption tokens."""
    prompt_tokens: int = 32
    """Template and instruction."""
    image_height: int = 512
    """Pixels, of the source and of what is painted."""
    image_width: int = 512
    """Pixels, as above."""
    score_batch: int = 4
    """Captions scored at a time, with gradients."""
    decode_batch: int = 4
    """Images painted at a time."""
    guidance: bool = True
    """Whether the decoder runs twice an image."""

    @property
    def image_tokens(self) -> int:
        """One per 28 × 28 pixels, rounded as Qwen2.5-VL does."""
        return max(1, round(self.image_height / 28)) * max(1, round(self.image_width / 28))


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    part: str
    num_parameters: int | None
    num_bytes: float
    phase: str
    """``always``, or the phase of the step that it is needed in: ``caption``, ``paint``,
    ``update``."""
    note: str


def step_lines(shape: StepShape) -> list[Line]:
    """Everything that is in memory, and when."""
    return [*_weight_lines(shape), *_activation_lines(shape)]


def peak_bytes(lines: list[Line]) -> float:
    """What is always there, and the largest phase."""
    phases: dict[str, float] = {}
    for line in lines:
        phases[line.phase] = phases.get(line.phase, 0.0) + line.num_bytes
    return phases.pop("always") + max(phases.values())


def _weight_lines(shape: StepShape) -> list[Line]:
    qwen = meta_qwen()
    language = qwen.model.language_model
    trained = count_lora(language, shape.lora_rank) if shape.lora_rank else count(language)
    name = (
        f"LoRA, rank {shape.lora_rank}" if shape.lora_rank else "language model, its trained copy"
    )
    frozen = [
        ("Qwen2.5-VL-3B, vision tower", count(qwen.model.visual)),
        ("Qwen2.5-VL-3B, language model", count(language)),
        (f"SD3.5-{shape.decoder}, transformer", count(meta_transformer(shape.decoder))),
        ("SD3.5, autoencoder", count(meta_vae())),
        ("projector 2048 → 8192 → 4096", count(meta_projector())),
    ]
    # as ``uae train`` loads them
    size, precision = (BF16, "bf16") if shape.lora_rank else (FP32, "fp32")
    lines = [
        Line(part, number, float(number * size), "always", f"weights in {precision}")
        for part, number in frozen
    ]
    return [
        *lines,
        Line(name, trained, float(trained * FP32), "always", "weights in fp32"),
        Line("AdamW state", 2 * trained, 2.0 * trained * FP32, "always", "two moments in fp32"),
        Line("gradients", trained, float(trained * FP32), "update", "fp32"),
    ]


def _activation_lines(shape: StepShape) -> list[Line]:
    text = QWEN_3B["text_config"]
    length = shape.image_tokens + shape.prompt_tokens + shape.caption_tokens
    cache = _kv_cache(text, shape.num_captions * length)
    logits = 3.0 * shape.score_batch * shape.caption_tokens * text["vocab_size"] * FP32
    scored = _language_activations(text, shape.score_batch * shape.caption_tokens + length)
    rows = shape.decode_batch * (2 if shape.guidance else 1)
    pixels = shape.image_height * shape.image_width * shape.decode_batch
    vae = 4.0 * pixels * SD35_VAE["block_out_channels"][1] * BF16
    sequences = f"{shape.num_captions} sequences of {length} tokens"
    captions = f"{shape.score_batch} captions with gradients, no recomputation"
    lines = [
        ("key-value cache", cache, "caption", sequences),
        ("LLM activations", scored, "update", captions),
        ("logits and softmax", logits, "update", "three fp32 copies of tokens × 151,936"),
        (
            "decoder activations",
            _decoder_activations(shape, rows),
            "paint",
            f"{rows} rows, no gradients",
        ),
        ("autoencoder activations", vae, "paint", "four full-resolution maps of 256 channels"),
    ]
    return [Line(part, None, num_bytes, phase, note) for part, num_bytes, phase, note in lines]


def _kv_cache(text: dict[str, Any], num_tokens: int) -> float:
    """Keys and values of every layer: ``2 · layers · kv_heads · head_dim`` a token."""
    head = text["hidden_size"] // text["num_attention_heads"]
    return 2.0 * text["num_hidden_layers"] * text["num_key_value_heads"] * head * num_tokens * BF16


def _language_activations(text: dict[str, Any], num_tokens: int) -> float:
    """A layer keeps about 10 vectors of the width and 4 of the MLP's for each token, LoRA's inputs
    included."""
    per_token = 10 * text["hidden_size"] + 4 * text["intermediate_size"]
    return float(text["num_hidden_layers"] * per_token * num_tokens * BF16)


def _decoder_activations(shape: StepShape, rows: int) -> float:
    """One block at a time: about 16 vectors of the width for each image and text token."""
    config = SD35_TRANSFORMERS[shape.decoder]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patches = math.prod(
        size // (8 * config["patch_size"]) for size in (shape.image_height, shape.image_width)
    )
    return 16.0 * width * rows * (patches + shape.caption_tokens + shape.prompt_tokens) * BF16


# --- the table -----------------------------------------------------------------------------------


def print_footprint(shape: StepShape) -> None:
    """The table, its peak, and what is left of 80 GB."""
    from rich.console import Console
    from rich.table import Table

    lines = step_lines(shape)
    table = Table(
        "part",
        "parameters",
        "GB",
        "when",
        "how",
        title="Memory of one step of Unified-GRPO, one GPU",
    )
    for line in lines:
        number = "" if line.num_parameters is None else f"{line.num_parameters:,}"
        table.add_row(line.part, number, f"{line.num_bytes / 1e9:.2f}", line.phase, line.note)
    console = Console()
    console.print(table)
    peak = peak_bytes(lines)
    verdict = (
        "fits"
        if peak < 0.95 * GPU_BYTES
        else "does not fit: lower --train.micro-batch or take SD3.5-medium"
    )
    console.print(
        f"peak: {peak / 1e9:.1f} GB of {GPU_BYTES / 1e9:.0f} GB, {verdict}. Parameters are "
        "exact, the rest estimated. The reward backbone (CLIP ViT-L/14: 1.7 GB in fp32) and the "
        "allocator's overhead come on top."
    )
