"""Short runs of every kind of step, in fp32 on the shipped models: on a GPU, and by several
processes (``python kinds.py FOLDER STEPS SHARD KIND …``, started by ``torchrun``)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.torchrun import say
from uae.config import CaptionSettings, DecodeSettings
from uae.diffusion.forward import AWM
from uae.models.load import load_model
from uae.rewards.build import build_reward
from uae.rl.auxiliary import Auxiliary
from uae.rl.config import TrainConfig
from uae.rl.losses import Objective
from uae.rl.rollout import JointSource
from uae.rl.train import train
from uae.similarity.backbones import load_backbone
from uae.types import PromptSource
from uae.utils.metrics import read_metrics
from uae.utils.processes import join, leave, num_processes, speaking_once
from uae.world.data import SceneImages, ScenePairs, ScenePrompts, SceneQuestions

CAPTIONS: dict[str, Any] = {
    "group_size": 3,
    "captioning": CaptionSettings("describe the image in full detail", max_new_tokens=12),
    "decoding": DecodeSettings(num_steps=2),
}
PROMPTS: dict[str, Any] = {
    "group_size": 1,
    "caption_weight": 0.0,
    "reconstructions_per_caption": 3,
    "decoding": DecodeSettings(num_steps=3, sampler="sde", window_size=2, shared_noise=True),
}
JUDGES = {"judge": 1.0, "clip_score": 0.5, "caption_likelihood": 0.1}
# By name: model, rank of LoRA, rewards and settings of the run.
KINDS: dict[str, tuple[str, int, dict[str, float], dict[str, Any]]] = {
    "captions": ("tiny", 0, {"clip": 1.0, "image_text": 0.5}, CAPTIONS | {"anchor_coef": 1.0}),
    "captions by LoRA": ("tiny", 4, {"objects": 1.0}, CAPTIONS | {"text_anchor_coef": 1.0}),
    "a window": ("tiny", 4, JUDGES, PROMPTS | {"pull_coef": 0.1}),
    "a window, fully": ("tiny", 0, {"judge": 1.0}, PROMPTS | {"num_updates": 2}),
    "nft": (
        "tiny",
        4,
        JUDGES,
        PROMPTS | {"decoding": DecodeSettings(num_steps=3), "decoder_update": "nft"},
    ),
    "awm": (
        "tiny",
        4,
        JUDGES,
        PROMPTS
        | {
            "decoding": DecodeSettings(num_steps=3),
            "decoder_update": "awm",
            "awm": AWM(num_times=2),
            "matching_coef": 0.5,
            "pairs_per_step": 3,
            "num_updates": 2,
        },
    ),
    "captions and image tokens": (
        "tiny-ar",
        0,
        {"dinov2": 1.0},
        CAPTIONS | {"decoding": DecodeSettings(guidance_scale=2.0), "ema_decay": 0.9},
    ),
    "both at once": (
        "tiny-ar",
        4,
        JUDGES,
        PROMPTS
        | {
            "group_size": 3,
            "caption_weight": 1.0,
            "captioning": CAPTIONS["captioning"],
            "decoding": DecodeSettings(),
            "decoder_learning_rate": 1e-4,
        },
    ),
}


def run(
    kind: str, device: str, folder: Path, num_steps: int, shard: Any = "nothing"
) -> list[dict[str, Any]]:
    """The metrics of a short run in fp32."""
    name, rank, rewards, settings = KINDS[kind]
    config = TrainConfig(
        num_steps=num_steps,
        images_per_step=3,  # two processes share them unevenly
        probe_every=1,
        objective=Objective(kl_coef=0.01, scale_rewards="batch"),
        use_bf16=False,
        shard=shard,
        **{"learning_rate": 1e-4} | settings,
    )
    model: Any = load_model(name).to(device)
    paints = config.caption_weight == 0 or kind == "both at once"
    decoding = config.decoding_at(0) if paints or name == "tiny-ar" else None
    model.begin_training(rank, captions=config.caption_weight > 0, decoding=decoding)
    backbones = {
        each: load_backbone(each, "tiny", device=device) for each in ("clip", "dinov2", "longclip")
    }
    reward = build_reward(rewards, backbones, model.encoder, "describe the image")
    prompts: PromptSource = ScenePrompts(exhaustive_share=0.5)
    source: Any = prompts if paints else SceneImages()
    judged = reward
    if kind == "both at once":
        source = JointSource(SceneImages(), prompts)
        reward = build_reward({"clip": 1.0}, backbones, model.encoder, "describe the image")
    auxiliary = Auxiliary(ScenePairs(), SceneQuestions(), prompts)
    train(model, reward, source, config, folder, {}, prompt_reward=judged, auxiliary=auxiliary)
    return list(read_metrics(folder / "metrics.jsonl"))


if __name__ == "__main__":
    join()
    say(f"processes {num_processes()}")
    with speaking_once():
        for each in sys.argv[4:]:
            run(each, "cpu", Path(sys.argv[1]) / each, int(sys.argv[2]), sys.argv[3])
    leave()
