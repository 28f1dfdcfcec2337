"""The world's similarity backbones: small CLIP, LongCLIP, DINOv2 and DINOv3 models.

All see a 48x48 image as 9 patches of 16x16 pixels, at width 128: few tokens, so a reward costs
little. CLIP has 77 text positions, as OpenAI's; the LongCLIP-style one has 248, stretched from it
as in Zhang et al., ECCV 2024 (arXiv 2403.15378): the first 20 positions are kept, the others
interpolated four times as dense.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedTokenizerFast,
)

from uae.similarity.checkpoints import CLIP_TEXT_POSITIONS
from uae.similarity.longclip import KEPT_POSITIONS
from uae.similarity.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from uae.world.scene import IMAGE_SIZE
from uae.world.tokenizer import build_qwen_tokenizer

PATCH_SIZE = 16  # pixels: one cell of the grid
STRETCH = 4  # LongCLIP positions per CLIP position past the kept ones: 20 + 4 * 57 = 248
START, END = "<|im_start|>", "<|endoftext|>"  # CLIP pools at the first END, and pads with it

Model = TypeVar("Model", bound=nn.Module)

_TOWER = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 128,
    "hidden_act": "gelu",
}


def build_clip_tokenizer() -> PreTrainedTokenizerFast:
    """The world's tokenizer, with a start before and an end after every text, as CLIP's."""
    tokenizer = build_qwen_tokenizer()
    tokenizer.add_special_tokens({"bos_token": START, "eos_token": END, "pad_token": END})
    tokenizer.chat_template = None
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (START, END)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=ids
    )
    return tokenizer


def build_clip() -> CLIPModel:
    """1.1M parameters, random."""
    tokenizer = build_clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "hidden_act": "gelu",
        "max_position_embeddings": CLIP_TEXT_POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        **_TOWER,
        "intermediate_size": 512,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
    return rescale_initial_weights(CLIPModel(config))


def stretch_positions(clip: CLIPModel) -> CLIPModel:
    """A copy of ``clip`` with 248 text positions."""
    config: Any = copy.deepcopy(clip.config)
    num_stretched = CLIP_TEXT_POSITIONS - KEPT_POSITIONS
    config.text_config.max_position_embeddings = KEPT_POSITIONS + STRETCH * num_stretched
    longclip, state = CLIPModel(config), clip.state_dict()
    name = "text_model.embeddings.position_embedding.weight"
    head, tail = state[name][:KEPT_POSITIONS], state[name][KEPT_POSITIONS:]
    stretched = nn.functional.interpolate(
        tail.T[None], scale_factor=STRETCH, mode="linear", align_corners=False
    )[0].T
    longclip.load_state_dict({**state, name: torch.cat([head, stretched])})
    return longclip


def build_dinov2() -> Dinov2Model:
    """0.7M parameters, random."""
    config = Dinov2Config(**_TOWER, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, mlp_ratio=4)
    return rescale_initial_weights(Dinov2Model(config))


def build_dinov3() -> DINOv3ViTModel:
    """0.7M parameters, random; four register tokens, rotary positions without jitter."""
    config = DINOv3ViTConfig(
        **_TOWER,
        intermediate_size=512,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        num_register_tokens=4,
        pos_embed_rescale=None,
    )
    return rescale_initial_weights(DINOv3ViTModel(config))


@torch.no_grad()
def rescale_initial_weights(model: Model) -> Model:
    """Matrices of variance 1/inputs; words and an image's positions of unit variance.

    A text's positions matter little.

    The classes' own 0.02 suits widths near 1000. At width 128 every block is nearly silent, and
    positions are lost beside the pixels. Training then learns colours and stays blind to shape,
    size and place for thousands of steps.
    """
    for name, parameter in model.named_parameters():
        if "position_embedding" in name:
            nn.init.normal_(parameter, std=0.1 if "text" in name else 1.0)
        elif "token_embedding" in name:
            nn.init.normal_(parameter)
        elif parameter.ndim >= 2:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def processor_config(name: str) -> dict:
    """The ``preprocessor_config.json`` of a backbone."""
    common = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
    }
    if name == "dinov3":
        edges = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        kind = {"image_processor_type": "DINOv3ViTImageProcessor", "size": edges, "resample": 2}
        return {
            **common,
            **kind,
            "image_mean": list(IMAGENET_MEAN),
            "image_std": list(IMAGENET_STD),
        }
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    size = {
        "size": {"shortest_edge": IMAGE_SIZE},
        "do_center_crop": True,
        "crop_size": crop,
        "resample": 3,
    }
    if name == "dinov2":
        kind = {"image_processor_type": "BitImageProcessor", "image_mean": list(IMAGENET_MEAN)}
        return {**common, **size, **kind, "image_std": list(IMAGENET_STD)}
    kind = {"image_processor_type": "CLIPImageProcessor", "image_mean": list(CLIP_MEAN)}
    return {**common, **size, **kind, "image_std": list(CLIP_STD)}
