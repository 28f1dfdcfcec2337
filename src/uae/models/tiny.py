"""The tiny models: small configurations of the very classes the real checkpoints use, for 48x48 images.

Sizes: VAE 0.65M parameters, 4x down, 4 channels (12x12 latents); Qwen2.5-VL 2.9M, 9 language tokens an image;
SD3 transformer 5M, 36 image tokens.
"""

from __future__ import annotations

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

LATENT_CHANNELS = 4


def build_vae() -> AutoencoderKL:
    """``AutoencoderKL`` 4x down; scaling and shift are set from the latents' statistics once trained."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
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
