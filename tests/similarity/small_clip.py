"""A CLIP of the embedded world's kind with random weights: 48 pixels, a token for each word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


def save_small_clip(folder: Path, words: Mapping[str, int], num_positions: int) -> Path:
    """words: ids by word, with those of <unk>, <pad>, <s> and </s>."""
    begin, end = words["<s>"], words["</s>"]
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = tower | {
        "vocab_size": len(words),
        "bos_token_id": begin,
        "eos_token_id": end,
        "max_position_embeddings": num_positions,
    }
    vision = tower | {"patch_size": 8, "image_size": 48}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=48).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(dict(words), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)
    return folder
