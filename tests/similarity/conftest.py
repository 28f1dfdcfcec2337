"""Small backbones of published widths and preprocessing, saved as the checkpoints are."""

import json

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.similarity.images import IMAGENET
from tests.similarity.small_clip import save_small_clip

DINOV3_PROCESSOR = {
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_center_crop": None,
    "crop_size": None,
    **IMAGENET,
}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """CLIP ViT-L/14's widths, depth 2, saved as the published checkpoint is."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    text = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 1,
    }
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 2,
    }
    text |= {"vocab_size": 64, "projection_dim": 768, "bos_token_id": 62, "eos_token_id": 63}
    vision |= {"patch_size": 14, "image_size": 224, "projection_dim": 768}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)
    ).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(
        hidden_size=1024,
        num_hidden_layers=2,
        num_attention_heads=16,
        patch_size=14,
        image_size=518,
        mlp_ratio=4,
    )
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=224, **IMAGENET).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def dinov3_folder(tmp_path_factory):
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("dinov3")
    config = DINOv3ViTConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=2,
        num_attention_heads=16,
        patch_size=16,
        image_size=224,
        num_register_tokens=4,
    )
    DINOv3ViTModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(DINOV3_PROCESSOR))
    return folder


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    """A CLIP of the embedded world's kind: 48 pixels, with a word-level tokenizer."""
    torch.manual_seed(4)
    words = {"red": 0, "blue": 1, "dot": 2, "a": 3, "<unk>": 4, "<pad>": 5, "<s>": 6, "</s>": 7}
    return save_small_clip(tmp_path_factory.mktemp("small"), words, num_positions=12)
