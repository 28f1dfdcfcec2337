"""Small random-weight checkpoints, laid out file by file as the published ones are, for tests of
the real path.

* ``write_qwen``: ``Qwen/Qwen2.5-VL-3B-Instruct``. Flat ``config.json`` as it was written by
  transformers 4.41, shards under the names of that time (``model.layers…``, ``visual…``, no
  ``lm_head``), a byte-level BPE with the real special tokens in their order, the chat template's
  structure, and the image processor's limits.
* ``write_janus``: ``deepseek-community/Janus-Pro-7B``. Nested ``config.json``, two shards, special
  tokens with their full-width bars, the template's structure, generation settings with the token
  that begins an image.
* ``write_sd3``: ``stabilityai/stable-diffusion-3.5-large`` in diffusers' layout.
* ``write_clip``: ``openai/clip-vit-large-patch14``, its image side.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    JanusConfig,
    JanusForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

# --- Qwen2.5-VL ----------------------------------------------------------------------------------

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
SENTENCES = [
    "Describe this image in detail.",
    "You are a helpful assistant.",
    "A red circle is to the left of a small blue square on a grey background.",
    "system user assistant generate",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_WIDTH = 64


def write_qwen(folder: Path, num_shards: int = 2) -> Path:
    """The folder of a Qwen2.5-VL of width 64, 2 layers, vision tower of 2 blocks with windows of
    112 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(folder)
    config = _qwen_config(ids)
    _write_json(folder / "config.json", config)
    ends = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    generation = {
        "bos_token_id": ends[1],
        "pad_token_id": ends[1],
        "do_sample": True,
        "eos_token_id": ends,
        "repetition_penalty": 1.05,
        "temperature": 0.000001,
        "transformers_version": "4.49.0",
    }
    _write_json(folder / "generation_config.json", generation)
    processor = {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    _write_json(folder / "preprocessor_config.json", processor)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder))
    _write_shards(folder, published_names(model), num_shards)
    return folder


def published_names(model: Qwen2_5_VLForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The weights in bf16 as the published files name them; the output layer is tied to the
    embeddings, so left out."""
    named = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        if name != "lm_head.weight":
            named[name] = tensor.bfloat16().contiguous()
    return named


def _qwen_config(ids: dict[str, int]) -> dict:
    """Every key of the published ``config.json``; widths, depths and ids are this small model's."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": QWEN_WIDTH,
        "initializer_range": 0.2,
        "intermediate_size": 96,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 2,
            "hidden_act": "silu",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "in_chans": 3,
            "out_hidden_size": QWEN_WIDTH,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vocab_size": len(ids) + 8,  # more rows than tokens, as the published 151936 for 151665
    }


def _write_tokenizer(folder: Path) -> dict[str, int]:
    """Byte-level BPE of a few sentences, special tokens after the vocabulary; returns all ids."""
    tokenizer = _byte_level_bpe(SENTENCES)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.save(str(folder / "tokenizer.json"))
    parts = json.loads((folder / "tokenizer.json").read_text())["model"]
    _write_json(folder / "vocab.json", parts["vocab"])
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in parts["merges"]))
    ids = tokenizer.get_vocab()
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": _added(ids, SPECIAL_TOKENS),
        "additional_special_tokens": SPECIAL_TOKENS[1:],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return ids


def _byte_level_bpe(sentences: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer


def _added(ids: dict[str, int], tokens: list[str]) -> dict[str, dict]:
    flags = {
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    return {str(ids[token]): {"content": token, **flags} for token in tokens}


def _write_shards(folder: Path, tensors: dict[str, torch.Tensor], num_shards: int) -> None:
    """``model-0000i-of-0000n.safetensors`` and their index."""
    names = sorted(tensors)
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::num_shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


# --- Janus-Pro -----------------------------------------------------------------------------------

JANUS_BOS, JANUS_EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
JANUS_PAD = "<｜▁pad▁｜>"
JANUS_SPECIAL_TOKENS = [
    JANUS_BOS,
    JANUS_EOS,
    JANUS_PAD,
    "<image_placeholder>",
    "<begin_of_image>",
    "<end_of_image>",
    "<|User|>",
    "<|Assistant|>",
]
JANUS_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|User|>: ' if message['role'] == 'user' else '<|Assistant|>: ' }}"
    "{% for part in message['content'] %}"
    "{{ '<image_placeholder>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}"
    "{{ '\n\n' if message['role'] == 'user' else '<｜end▁of▁sentence｜>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)
JANUS_SIDE = 64  # pixels, in 4x4 tokens; published: 384 in 24x24
JANUS_WIDTH = 64


def write_janus(folder: Path) -> Path:
    """The folder of a Janus-Pro of width 64 with 2 layers, a vision tower of 2, and a VQ model of 5
    levels."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_janus_tokenizer(folder)
    num_tokens = (JANUS_SIDE // 16) ** 2
    ends = {
        "bos_token_id": ids[JANUS_BOS],
        "eos_token_id": ids[JANUS_EOS],
        "pad_token_id": ids[JANUS_PAD],
    }
    _write_json(folder / "config.json", _janus_config(ids, num_tokens))
    boi = {"boi_token_id": ids["<begin_of_image>"]}
    generation = {
        **ends,
        "_from_model_config": True,
        "generation_kwargs": boi,
        "transformers_version": "4.52.0.dev0",
    }
    _write_json(folder / "generation_config.json", generation)
    images = {
        "background_color": [127, 127, 127],
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_processor_type": "JanusImageProcessor",
        "image_std": [0.5] * 3,
        "min_size": 14,
        "processor_class": "JanusProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": JANUS_SIDE, "width": JANUS_SIDE},
    }
    _write_json(folder / "preprocessor_config.json", images)
    processor = {
        "num_image_tokens": num_tokens,
        "processor_class": "JanusProcessor",
        "use_default_system_prompt": True,
    }
    _write_json(folder / "processor_config.json", processor)
    model = JanusForConditionalGeneration(
        JanusConfig.from_pretrained(folder, tie_word_embeddings=False)
    )
    _write_shards(
        folder, {name: t.bfloat16().contiguous() for name, t in model.state_dict().items()}, 2
    )
    return folder


def _write_janus_tokenizer(folder: Path) -> dict[str, int]:
    """Byte-level BPE that begins each text with BOS."""
    tokenizer = _byte_level_bpe(SENTENCES)
    tokenizer.add_special_tokens(JANUS_SPECIAL_TOKENS)
    ids = tokenizer.get_vocab()
    begin = (JANUS_BOS, ids[JANUS_BOS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{JANUS_BOS} $A", special_tokens=[begin]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "image_token": "<image_placeholder>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": _added(ids, JANUS_SPECIAL_TOKENS),
        "additional_special_tokens": JANUS_SPECIAL_TOKENS[3:],
        **names,
        "bos_token": JANUS_BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": JANUS_EOS,
        "extra_special_tokens": names,
        "model_max_length": 16384,
        "pad_token": JANUS_PAD,
        "tokenizer_class": "LlamaTokenizerFast",
        "unk_token": None,
        "use_default_system_prompt": True,
    }
    _write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(JANUS_CHAT_TEMPLATE)
    return ids


def _janus_config(ids: dict[str, int], num_tokens: int) -> dict:
    """The published ``config.json``'s keys; widths, depths and ids are this small model's."""
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "image_token_id": ids["<image_placeholder>"],
        "model_type": "janus",
        "text_config": {
            "attention_bias": False,
            "hidden_act": "silu",
            "hidden_size": JANUS_WIDTH,
            "initializer_range": 0.2,
            "intermediate_size": 96,
            "max_position_embeddings": 16384,
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": len(ids) + 8,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.0.dev0",
        "vision_config": {
            "attention_bias": True,
            "attention_dropout": 0.0,
            "depth": 2,
            "hidden_act": "gelu",
            "hidden_size": 32,
            "image_size": JANUS_SIDE,
            "layer_norm_eps": 1e-06,
            "mlp_ratio": 4.0,
            "model_type": "janus_vision_model",
            "num_attention_heads": 2,
            "num_channels": 3,
            "num_hidden_layers": 2,
            "num_image_tokens": num_tokens,
            "patch_size": 16,
            "projection_dim": JANUS_WIDTH,
            "use_qk_norm": False,
        },
        "vq_config": {
            "base_channels": 32,
            "channel_multiplier": [1, 1, 2, 2, 4],
            "double_latent": False,
            "embed_dim": 8,
            "image_token_embed_dim": JANUS_WIDTH,
            "in_channels": 3,
            "latent_channels": 64,
            "model_type": "janus_vqgan",
            "num_embeddings": 64,
            "num_hidden_layers": 2,
            "num_patches": JANUS_SIDE // 16,
            "num_res_blocks": 2,
            "out_channels": 3,
            "projection_dim": JANUS_WIDTH,
        },
    }


# --- Stable Diffusion 3.5 ------------------------------------------------------------------------


def large_like_transformer() -> SD3Transformer2DModel:
    """The published configuration's keys, 2 heads and 2 layers; takes latents of 16 channels."""
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        caption_projection_dim=32,
        joint_attention_dim=20,
        pooled_projection_dim=14,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def large_like_vae() -> AutoencoderKL:
    """8x down, 16 latent channels, with the published scaling and shift."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=16,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def write_sd3(folder: Path, transformer: SD3Transformer2DModel, vae: AutoencoderKL) -> Path:
    """Sharded bf16 weights under the real names, two CLIP text encoders, and a T5 that must not be
    read."""
    transformer.bfloat16().save_pretrained(folder / "transformer", max_shard_size="60KB")
    vae.bfloat16().save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    small_clip(folder, width=8, projection=8, pad_token="<|endoftext|>", activation="quick_gelu")
    small_clip(folder, width=12, projection=6, pad_token="!", activation="gelu")
    (folder / "text_encoder_3").mkdir()
    (folder / "text_encoder_3" / "model-00001-of-00002.safetensors").write_bytes(b"not weights")
    clip = ["transformers", "CLIPTextModelWithProjection"]
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": clip,
        "text_encoder_2": clip,
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", index)
    return folder


def small_clip(folder: Path, width: int, projection: int, pad_token: str, activation: str) -> None:
    """A CLIP text encoder and its tokenizer; the second one of SD3 pads with "!", as bigG's
    does."""
    letters = ["!", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        {token: i for i, token in enumerate(vocab)}, [], pad_token=pad_token, model_max_length=77
    )
    ids = {
        "bos_token_id": len(vocab) - 2,
        "eos_token_id": len(vocab) - 1,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=projection,
        hidden_act=activation,
        **ids,
    )
    suffix = "" if activation == "quick_gelu" else "_2"
    CLIPTextModelWithProjection(config).bfloat16().save_pretrained(folder / f"text_encoder{suffix}")
    tokenizer.save_pretrained(folder / f"tokenizer{suffix}")


# --- the reward ----------------------------------------------------------------------------------


def write_clip(folder: Path) -> Path:
    """CLIP with the published preprocessing (224 pixels, patches of 14) and random weights of width
    32."""
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    text |= {"vocab_size": 64, "bos_token_id": 62, "eos_token_id": 63, "projection_dim": 16}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    vision |= {"patch_size": 14, "image_size": 224, "projection_dim": 16}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    ).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return folder


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
