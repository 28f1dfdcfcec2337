"""LongCLIP's published file against an independent forward."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.similarity.images import assert_same_direction, photographs, to_tensor
from uae.similarity.backbones import load_backbone
from uae.similarity.longclip import load_longclip
from uae.similarity.preprocess import CLIP_PREPROCESS


def openai_state_dict(layers: int = 2) -> dict[str, Tensor]:
    """Random LongCLIP-L weights in their published layout (fp16, joint projections), small
    vocabulary."""
    torch.manual_seed(3)
    text, vision, projection, vocabulary = 768, 1024, 768, 64
    state = {
        "positional_embedding": torch.randn(248, text) * 0.1,
        "positional_embedding_res": torch.randn(248, text) * 0.1,
        "text_projection": torch.randn(text, projection) * text**-0.5,
        "logit_scale": torch.tensor(4.6),
        "token_embedding.weight": torch.randn(vocabulary, text) * 0.1,
        "ln_final.weight": 1 + 0.1 * torch.randn(text),
        "ln_final.bias": 0.1 * torch.randn(text),
        "visual.class_embedding": torch.randn(vision) * 0.1,
        "visual.positional_embedding": torch.randn(257, vision) * 0.1,
        "visual.proj": torch.randn(vision, projection) * vision**-0.5,
        "visual.conv1.weight": torch.randn(vision, 3, 14, 14) * 0.05,
        "visual.ln_pre.weight": 1 + 0.1 * torch.randn(vision),
        "visual.ln_pre.bias": 0.1 * torch.randn(vision),
        "visual.ln_post.weight": 1 + 0.1 * torch.randn(vision),
        "visual.ln_post.bias": 0.1 * torch.randn(vision),
    }
    for prefix, width in (("transformer.", text), ("visual.transformer.", vision)):
        for layer in range(layers):
            block = f"{prefix}resblocks.{layer}."
            shapes = {
                "attn.in_proj_weight": (3 * width, width),
                "attn.in_proj_bias": (3 * width,),
                "attn.out_proj.weight": (width, width),
                "attn.out_proj.bias": (width,),
                "mlp.c_fc.weight": (4 * width, width),
                "mlp.c_fc.bias": (4 * width,),
                "mlp.c_proj.weight": (width, 4 * width),
                "mlp.c_proj.bias": (width,),
                "ln_2.bias": (width,),
                "ln_1.bias": (width,),
            }
            state |= {
                block + name: torch.randn(shape) * 1.5 * width**-0.5
                for name, shape in shapes.items()
            }
            state |= {block + f"ln_{i}.weight": 1 + 0.1 * torch.randn(width) for i in (1, 2)}
    return {name: value.half() for name, value in state.items()}


def reference_blocks(state: dict[str, Tensor], prefix: str, x: Tensor, causal: bool) -> Tensor:
    """OpenAI CLIP's residual attention blocks, written from their description."""
    heads, layer = x.shape[-1] // 64, 0
    while f"{prefix}resblocks.{layer}.ln_1.weight" in state:
        w = {
            k.split(f"resblocks.{layer}.")[1]: v
            for k, v in state.items()
            if k.startswith(f"{prefix}resblocks.{layer}.")
        }
        h = nn.functional.layer_norm(x, x.shape[-1:], w["ln_1.weight"], w["ln_1.bias"])
        q, k, v = rearrange(
            h @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"],
            "b t (n h d) -> n b h t d",
            n=3,
            h=heads,
        )
        logits = q @ k.mT / 8
        if causal:
            logits = logits + torch.full(logits.shape[-2:], -torch.inf).triu(1)
        h = rearrange(logits.softmax(-1) @ v, "b h t d -> b t (h d)")
        x = x + h @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]
        h = nn.functional.layer_norm(x, x.shape[-1:], w["ln_2.weight"], w["ln_2.bias"])
        h = h @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"]
        x = x + (h * torch.sigmoid(1.702 * h)) @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
        layer += 1
    return x


def reference_image(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    x = nn.functional.conv2d(pixels, state["visual.conv1.weight"], stride=14)
    x = torch.cat(
        [
            state["visual.class_embedding"].expand(len(x), 1, -1),
            rearrange(x, "b d h w -> b (h w) d"),
        ],
        1,
    )
    x = x + state["visual.positional_embedding"]
    x = nn.functional.layer_norm(
        x, (1024,), state["visual.ln_pre.weight"], state["visual.ln_pre.bias"]
    )
    x = reference_blocks(state, "visual.transformer.", x, causal=False)[:, 0]
    x = nn.functional.layer_norm(
        x, (1024,), state["visual.ln_post.weight"], state["visual.ln_post.bias"]
    )
    return x @ state["visual.proj"]


def reference_text(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Positions: 20 rows of the first table, then the second; the feature sits on the highest token
    id."""
    positions = torch.where(
        torch.arange(248)[:, None] < 20,
        state["positional_embedding"],
        state["positional_embedding_res"],
    )
    x = state["token_embedding.weight"][tokens] + positions[: tokens.shape[1]]
    x = reference_blocks(state, "transformer.", x, causal=True)
    x = nn.functional.layer_norm(x, (768,), state["ln_final.weight"], state["ln_final.bias"])
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ state["text_projection"]


@pytest.fixture(scope="module")
def longclip_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("longclip") / "longclip-L.pt"
    torch.save(openai_state_dict(), file)
    return file


@torch.no_grad()
def test_longclip_file_equals_an_independent_forward(longclip_file):
    state = {name: value.float() for name, value in openai_state_dict().items()}
    images = photographs()
    pixels = CLIPImageProcessorPil()([Image.fromarray(x) for x in images], return_tensors="pt")[
        "pixel_values"
    ]
    backbone = load_backbone("longclip", longclip_file)
    assert_same_direction(
        backbone.embed([to_tensor(x) for x in images]), reference_image(state, pixels)
    )

    tokens = torch.randint(0, 62, (3, 100))
    tokens[:, -1] = 63  # the end token, the highest
    backbone.model.text_model.eos_token_id = 63
    features = backbone.model.get_text_features(input_ids=tokens).pooler_output
    torch.testing.assert_close(features, reference_text(state, tokens), atol=1e-4, rtol=1e-4)


def clip_processor_config() -> dict[str, Any]:
    """CLIP's image preprocessing as ``transformers`` writes it."""
    settings = asdict(CLIP_PREPROCESS)
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": settings["size"]},
        "crop_size": {"height": settings["crop"], "width": settings["crop"]},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": settings["mean"],
        "image_std": settings["std"],
    } | dict.fromkeys(
        ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), True
    )


def save_longclip(checkpoint: Path, folder: Path) -> None:
    """A LongCLIP ``.pt`` as a ``save_pretrained`` folder."""
    load_longclip(checkpoint).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(clip_processor_config()))


@torch.no_grad()
def test_longclip_folder_equals_its_file(longclip_file, tmp_path):
    save_longclip(longclip_file, tmp_path / "folder")
    images = [to_tensor(photographs()[0])]
    from_file, from_folder = (
        load_backbone("longclip", s) for s in (longclip_file, tmp_path / "folder")
    )
    assert from_file.preprocess == from_folder.preprocess
    assert from_file.model.config.text_config.max_position_embeddings == 248
    torch.testing.assert_close(from_file.embed(images), from_folder.embed(images))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"not a checkpoint"),
        lambda file: torch.save({"state": 1}, file),
        lambda file: torch.save({"model.weight": torch.zeros(2)}, file),
        lambda file: torch.save(nn.Linear(1, 1), file),  # a pickled object must not be run
    ],
)
def test_other_pt_files_are_refused(tmp_path, damage):
    damage(tmp_path / "longclip-L.pt")
    with pytest.raises(ValueError, match="expected LongCLIP's state dict"):
        load_backbone("longclip", tmp_path / "longclip-L.pt")
