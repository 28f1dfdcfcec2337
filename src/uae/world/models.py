"""The tiny models: small configurations of the classes of the real checkpoints, for 48x48 images.

Sizes: VAE 0.65M parameters, 4x down, 4 channels (12x12 latents); Qwen2.5-VL 2.9M, 9 language tokens
an image; SD3 transformer 4.5M, 36 image tokens. Janus 3.4M, of them 0.9M in the VQ model (4x down),
144 tokens an image both ways.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from uae.config import CaptionSettings, DecodeSettings
from uae.models.connectors import Projector, projector_between
from uae.models.decoders.sd3 import SD3Decoder
from uae.models.encoders.qwen_vl import ImageSettings, QwenVL
from uae.models.janus import Janus
from uae.models.llm_diffusion import LLMDiffusion
from uae.world.tokenizer import JANUS_TEMPLATE, build_janus_tokenizer, build_qwen_tokenizer

LATENT_CHANNELS = 4
TEXT_LENGTH = 48  # template and caption, padded
TEXT_WIDTH = 160  # of the text embeddings that the SD3 transformer takes
# of its pooled condition, constant zeros: there is no CLIP text encoder to embed the empty prompt
POOLED_WIDTH = 32


def build_vae() -> AutoencoderKL:
    """``AutoencoderKL`` 4x down; once trained, the latents' statistics give scaling and shift."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * 3,  # type: ignore[arg-type]
        block_out_channels=(16, 32, 64),  # type: ignore[arg-type]
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=48,
        scaling_factor=1.0,
        shift_factor=0.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


LLM_WIDTH = 192
LLM = {  # of both families
    "hidden_size": LLM_WIDTH,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "initializer_range": LLM_WIDTH**-0.5,  # the classes' 0.02 suits widths in the thousands
    "tie_word_embeddings": True,
}
CAPTIONING = CaptionSettings(temperature=0.0)
# 48x48 stays as it is
IMAGE_SETTINGS = ImageSettings(48 * 48, 48 * 48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def build_captioner() -> QwenVL:
    """The captioner from nothing: random weights, the world's tokenizer."""
    tokenizer = build_qwen_tokenizer()
    return QwenVL(build_vlm(tokenizer), tokenizer, IMAGE_SETTINGS)


def build_vlm(tokenizer: Any) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL: a 3-layer vision tower of width 160, a 4-layer LLM of width 192."""
    ids = tokenizer.get_vocab()
    ends = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    config = Qwen2_5_VLConfig(
        text_config={
            **LLM,
            "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            **ends,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 160,
            "intermediate_size": 320,
            "num_heads": 5,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 64,
            "fullatt_block_indexes": [0, 1, 2],
            "out_hidden_size": LLM_WIDTH,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**ends)
    return model


def build_transformer() -> SD3Transformer2DModel:
    """SD3's transformer on 12x12 latents in patches of 2, with query-key norm as in SD3.5."""
    return SD3Transformer2DModel(
        sample_size=12,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=5,
        num_attention_heads=5,
        attention_head_dim=32,
        caption_projection_dim=160,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        pos_embed_max_size=6,
        qk_norm="rms_norm",
    )


def build_projector(llm_width: int) -> Projector:
    """LLM states to the SD3 transformer's text embeddings: 192 -> 320 -> 160."""
    return projector_between(llm_width, TEXT_WIDTH)


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Without shift: that is for the many pixels of large images (SD3.5 uses 3)."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def build_decoder(vae: AutoencoderKL) -> SD3Decoder:
    """An untrained decoder around a trained VAE."""
    return SD3Decoder(
        build_transformer(),
        vae,
        build_scheduler(),
        build_projector(LLM_WIDTH),
        torch.zeros(POOLED_WIDTH),
        TEXT_LENGTH,
    )


def build_llm_diffusion(captioner: QwenVL, decoder: SD3Decoder) -> LLMDiffusion:
    """Both as one, painting in 20 steps without guidance, which its decoder was not taught."""
    return LLMDiffusion(captioner, decoder, captioning=CAPTIONING, decoding=DecodeSettings(20))


# --- UMM-2 ---------------------------------------------------------------------------------------

CODEBOOK_SIZE = 512
VISION_WIDTH = 160
IMAGE_TOKENS = 12 * 12  # of 4x4 pixels, of an input and of an output: the class ties the two


def build_janus() -> Janus:
    """Janus from nothing: a 3-layer vision tower, a 4-layer LLM, a VQ model."""
    tokenizer = build_janus_tokenizer()
    image_processor = JanusImageProcessorPil(
        size={"height": 48, "width": 48}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )  # type: ignore[call-arg]
    processor = JanusProcessor(
        image_processor, tokenizer, chat_template=JANUS_TEMPLATE, num_image_tokens=IMAGE_TOKENS
    )
    decoding = DecodeSettings(temperature=0.0)  # no guidance, which makes its pictures worse
    return Janus(build_janus_model(tokenizer), processor, captioning=CAPTIONING, decoding=decoding)


def build_janus_model(tokenizer: Any) -> JanusForConditionalGeneration:
    """The model alone; its LLM is of the shape of UMM-1's, biases included, to begin as that."""
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = JanusConfig(
        text_config={
            **LLM,
            "attention_bias": True,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            **special,
        },
        vision_config={  # type: ignore[arg-type]
            "hidden_size": VISION_WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 5,
            "mlp_ratio": 2.0,
            "image_size": 48,
            "patch_size": 4,
            "projection_dim": LLM_WIDTH,
            "num_image_tokens": IMAGE_TOKENS,
            "depth": 2,
            "initializer_range": VISION_WIDTH**-0.5,
        },
        vq_config={  # type: ignore[arg-type]
            "embed_dim": 8,
            "num_embeddings": CODEBOOK_SIZE,
            "latent_channels": 64,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 2],
            "num_res_blocks": 1,
            "projection_dim": LLM_WIDTH,
            "image_token_embed_dim": LLM_WIDTH,
            "initializer_range": 0.05,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(tokenizer.image_token),
        tie_word_embeddings=True,
    )
    model = JanusForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **special,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids(tokenizer.boi_token)},
    )
    return model
