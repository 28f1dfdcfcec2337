"""Small random checkpoints of the classes that GenEval's judge is made of."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    PreTrainedTokenizerFast,
    SwinConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)

from uae.bench.geneval.classes import COLORS, OBJECTS
from uae.bench.geneval.detector import Segmenter


def save_detector(folder: Path, names: tuple[str, ...] = OBJECTS) -> Path:
    """Of 12 queries, sure of what it sees by chance."""
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    width = dict.fromkeys(("hidden_dim", "feature_size", "mask_feature_size"), 32)
    config = Mask2FormerConfig(
        **width,
        backbone_config=backbone,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        num_queries=12,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    model = Segmenter(config)
    with torch.no_grad():
        model.class_predictor.weight.mul_(150)
        for name, weight in model.named_parameters():
            if "mask_embedder" in name or "mask_projection" in name:
                weight.mul_(6)
    model.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 384, "width": 384}).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """Of 48 pixels, with a word of the tokenizer for each word of the templates."""
    torch.manual_seed(1)
    words = {"a", "photo", "of", "-", "colored", "object", *COLORS}
    words |= {word for name in OBJECTS for word in name.split()}
    vocabulary = {
        word: i for i, word in enumerate(["<unk>", "<pad>", "<s>", "</s>", *sorted(words)])
    }
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = tower | {
        "vocab_size": len(vocabulary),
        "bos_token_id": 2,
        "eos_token_id": 3,
        "max_position_embeddings": 16,
    }
    vision = tower | {"patch_size": 8, "image_size": 48}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=48).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)
    return folder
