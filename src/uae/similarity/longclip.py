"""LongCLIP's published ``.pt`` as a ``transformers`` ``CLIPModel`` of 248 text positions.

LongCLIP (Zhang et al., ECCV 2024, arXiv 2403.15378) is published as an OpenAI-CLIP-style state
dict. It differs from CLIP only in its text positions: of 248 rows the first 20 come from
``positional_embedding`` (kept from CLIP) and the others from ``positional_embedding_res``.
Attention projections are stored joint (q, k, v); ``proj`` and ``text_projection`` are stored
transposed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from uae.utils.messages import first_line

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel

KEPT_POSITIONS = 20
HEAD_WIDTH = 64  # of every OpenAI CLIP
END_OF_TEXT = 49407

BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}
REQUIRED = {*NAMES, *TRANSPOSED, "positional_embedding", "positional_embedding_res"}


def load_longclip(checkpoint: Path) -> CLIPModel:
    """A ``CLIPModel`` with the weights of a LongCLIP ``.pt`` (loaded as tensors only, no code
    runs)."""
    from transformers import CLIPModel

    state = read_state_dict(checkpoint)
    model = CLIPModel(longclip_config(state))
    model.load_state_dict(convert_state_dict(state))
    return model.eval()


def read_state_dict(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a LongCLIP ``.pt``; anything else raises ValueError."""
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{checkpoint}: expected LongCLIP's state dict, could not read it "
            f"({first_line(error)}); download longclip-L.pt again"
        ) from error
    missing = sorted(REQUIRED - set(state)) if isinstance(state, dict) else sorted(REQUIRED)
    if missing:
        raise ValueError(
            f"{checkpoint}: expected LongCLIP's state dict, {len(missing)} of its tensors are "
            f"missing ({', '.join(missing[:3])}, …); use longclip-L.pt of "
            "BeichenZhang/LongCLIP-L"
        )
    return {name: value for name, value in state.items() if name not in NOT_WEIGHTS}


def longclip_config(state: dict[str, Tensor]) -> CLIPConfig:
    """The model's sizes, read off its tensors."""
    from transformers import CLIPConfig

    def tower(prefix: str, width: int) -> dict[str, int]:
        blocks = {
            name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)
        }
        feed_forward = state[f"{prefix}0.mlp.c_fc.weight"].shape[0]
        return {
            "hidden_size": width,
            "intermediate_size": feed_forward,
            "num_hidden_layers": len(blocks),
            "num_attention_heads": width // HEAD_WIDTH,
        }

    text_width, projection = state["text_projection"].shape
    vision_width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    text = tower("transformer.resblocks.", text_width) | {
        "max_position_embeddings": state["positional_embedding"].shape[0],
        "vocab_size": state["token_embedding.weight"].shape[0],
        "eos_token_id": END_OF_TEXT,
        "bos_token_id": END_OF_TEXT - 1,
        "projection_dim": projection,
    }
    vision = tower("visual.transformer.resblocks.", vision_width) | {
        "patch_size": patch,
        "image_size": patch * grid,
        "projection_dim": projection,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)


def convert_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename (and split, transpose, join) LongCLIP's tensors to ``CLIPModel``'s, in fp32."""
    of_clip, stretched = state["positional_embedding"], state["positional_embedding_res"]
    positions = torch.cat([of_clip[:KEPT_POSITIONS], stretched[KEPT_POSITIONS:]])
    converted = {"text_model.embeddings.position_embedding.weight": positions}
    for name, value in state.items():
        if name in TRANSPOSED:
            converted[TRANSPOSED[name]] = value.T
        elif name in NAMES:
            converted[NAMES[name]] = value
        elif match := re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name):
            visual, layer, rest = match.groups()
            prefix = f"{'vision' if visual else 'text'}_model.encoder.layers.{layer}."
            converted |= convert_block(prefix, rest, value)
        elif name not in ("positional_embedding", "positional_embedding_res"):
            raise ValueError(f"expected LongCLIP's state dict, it has an unknown tensor {name}")
    return {name: value.float().contiguous() for name, value in converted.items()}


def convert_block(prefix: str, rest: str, value: Tensor) -> dict[str, Tensor]:
    """One tensor of a transformer block; joint attention projections become three."""
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = rest.removeprefix("attn.in_proj_")
        return {
            f"{prefix}self_attn.{p}_proj.{kind}": part
            for p, part in zip("qkv", value.chunk(3), strict=True)
        }
    module, _, kind = rest.rpartition(".")
    if module not in BLOCK_NAMES:
        raise ValueError(f"expected LongCLIP's state dict, it has an unknown tensor {rest}")
    return {f"{prefix}{BLOCK_NAMES[module]}.{kind}": value}
