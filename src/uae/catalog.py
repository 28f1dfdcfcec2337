"""What ``uae train`` runs, in a line each: apart from the settings, so that it is listed without
loading torch."""

PRESETS = {
    "tiny": "the shipped tiny model: 80 steps in 6 minutes on two cores",
    "tiny-ar": "the shipped tiny autoregressive model: captions and image tokens together",
    "paper": "Qwen2.5-VL-3B + SD3.5-large with LoRA, as the paper post-trains UMM-1",
    "decoder": (
        "SD3.5-medium learns to paint what Qwen2.5-VL-3B says, with the settings of Flow-GRPO"
    ),
    "janus": "Janus-Pro-1B, captions and image tokens together, with the settings of T2I-R1",
}
"""One run each; settings in ``presets.py``."""

PIPELINES = {
    "v1": (
        "long captions, cold start, encoder RL, decoder RL: the paper's first version, "
        "Qwen2.5-VL-3B + SD3.5-large"
    ),
    "v3": (
        "long captions, encoder RL, decoder RL: the paper's versions 2 and 3, Qwen2.5-VL-3B + "
        "SD3.5-large"
    ),
    "v5": "encoder RL alone: the paper's versions 4 and 5; --model needs a trained projector",
    "v5-ar": "both halves of Janus-Pro-1B",
    "v1-tiny": "v1 in the embedded world, measured after each stage",
    "v3-tiny": "v3 in the embedded world, measured after each stage",
    "v5-tiny": "v5 in the embedded world",
    "decoder-tiny": (
        "decoder RL alone, from captions of all lengths, judged by the model's own understanding"
    ),
    "joint-tiny": (
        "encoder and decoder in one step: 4 images, 4 captions each, 4 reconstructions "
        "of each caption"
    ),
    "v5-tiny-ar": "v5 of the tiny UMM-2, both halves",
    "v3-tiny-ar": (
        "v3 of the tiny UMM-2, captions and then image tokens; as shipped it is "
        "pretrained on long captions"
    ),
}
"""Stage after stage; settings in ``pipelines.py``."""
