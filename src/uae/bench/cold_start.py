"""What the shipped models can do before any reinforcement learning, on held-out scenes: ``uae tiny measure``."""

from __future__ import annotations

from typing import Any

import torch

from uae.bench.backbone_quality import measure_backbone
from uae.bench.statistics import shares_to_json
from uae.bench.unified_result import BACKBONES
from uae.bench.world import captions_by_instruction, perception, pictures
from uae.bench.world_fidelity import decoder_report, fidelity, psnr, scenes_with
from uae.config import DecodeSettings
from uae.models.llm_diffusion import LLMDiffusion
from uae.rewards.backbones import load_backbone
from uae.scenes.scene import scene_at

DECODING_STEPS = (10, 20)  # of the quickstart's reward, and of its evaluation
NUM_SCENES = 400  # for captions and questions


def measure_cold_start(model: LLMDiffusion, min_objects: int = 1000) -> dict[str, Any]:
    """VAE round trip, decoder from exhaustive true captions, captioner and the world's four backbones."""
    scenes = [scene_at("test", i) for i in range(NUM_SCENES)]
    return {
        "vae": round_trip_report(model, min_objects),
        "decoder": {
            f"{num_steps} steps": {
                name: found.to_json()
                for name, found in decoder_report(
                    model, min_objects=min_objects, decoding=DecodeSettings(num_steps)
                ).items()
            }
            for num_steps in DECODING_STEPS
        },
        "captions": captions_by_instruction(model, scenes),
        "questions": shares_to_json(perception(model, scenes, num_questions=5 * NUM_SCENES)),
        "backbones": {name: measure_backbone(load_backbone(name, "tiny")) for name in BACKBONES},
    }


@torch.no_grad()
def round_trip_report(model: LLMDiffusion, min_objects: int = 1000) -> dict[str, Any]:
    """Pixels to latents and back: what the detector still reads exactly, and the peak signal-to-noise ratio in dB."""
    scenes = scenes_with(min_objects, "test")
    images = pictures(scenes)
    decoder = model.decoder
    decoded = torch.cat([decoder.decode_latents(decoder.encode_images(part)) for part in images.split(64)])
    return {**fidelity(scenes, decoded).to_json(), "psnr": psnr(images, decoded)}
