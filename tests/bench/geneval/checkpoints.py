"""Small random checkpoints of the classes that GenEval's judge is made of."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    Mask2FormerConfig,
    SwinConfig,
)
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)

from tests.similarity.small_clip import save_small_clip
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
    return save_small_clip(folder, vocabulary, num_positions=16)
