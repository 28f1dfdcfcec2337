"""What ``uae train`` runs, in a line each: apart from the settings, so that it is listed without
loading torch."""

REAL = {
    "paper": "Qwen2.5-VL-3B + SD3.5-large with LoRA, as the paper post-trains UMM-1",
    "decoder": "SD3.5-medium learns to paint what Qwen2.5-VL-3B says, with AWM's settings",
    "janus": "Janus-Pro-1B, captions and image tokens together, with the settings of T2I-R1",
    "v1": "long captions, cold start, encoder RL, decoder RL: the paper's first version",
    "v3": "long captions, encoder RL, decoder RL: the paper's versions 2 and 3",
    "v5": "paper, in the folders of a pipeline: the paper's versions 4 and 5",
    "v5-ar": "janus, in the folders of a pipeline",
}
"""Settings in ``stages/recipes.py``."""

TINY = {
    "tiny": "the shipped tiny model: 80 steps in a few minutes on two cores",
    "tiny-ar": "the shipped tiny autoregressive model: captions and image tokens together",
    "v1-tiny": "v1 in the embedded world, measured after each stage",
    "v3-tiny": "v3 in the embedded world, measured after each stage",
    "v5-tiny": "tiny, measured before and after",
    "seeing-tiny": "a captioner that sees less well learns, always asked for detail",
    "decoder-tiny": "decoder RL alone, from prompts, judged by what each of them requires",
    "joint-tiny": "both halves in one step: captions from images, painting from prompts",
    "v5-tiny-ar": "tiny-ar, measured before and after",
    "joint-tiny-ar": "joint-tiny of the tiny UMM-2, as its quickstart trains it",
    "v3-tiny-ar": "v3 of the tiny UMM-2: captions, then painting; its pretraining is shipped",
}
"""Settings in ``world/recipes.py``."""

RECIPES = REAL | TINY
