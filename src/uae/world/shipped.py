"""What the shipped models can do before any reinforcement learning, on held-out scenes: ``uae tiny
measure``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from uae.bench.statistics import shares_to_json
from uae.bench.unified_result import BACKBONES
from uae.config import DecodeSettings
from uae.models.base import UnifiedModel
from uae.similarity.backbones import load_backbone
from uae.world.build.quality import measure_backbone
from uae.world.fidelity import decoder_report, fidelity, psnr, scenes_with
from uae.world.measure import captions_by_instruction, perception, pictures
from uae.world.scene import scene_at

NUM_SCENES = 400  # for captions and questions


def measure_cold_start(
    model: UnifiedModel, decodings: Mapping[str, DecodeSettings], min_objects: int = 1000
) -> dict[str, Any]:
    """Codec round trip, decoder from exhaustive true captions painted in each of these ways,
    captioner and the world's four backbones."""
    scenes = [scene_at("test", i) for i in range(NUM_SCENES)]
    return {
        "codec": codec_report(model, min_objects),
        "decoder": {
            name: {
                case: found.to_json()
                for case, found in decoder_report(
                    model, min_objects=min_objects, decoding=decoding
                ).items()
            }
            for name, decoding in decodings.items()
        },
        "captions": captions_by_instruction(model, scenes),
        "questions": shares_to_json(perception(model, scenes, num_questions=5 * NUM_SCENES)),
        "backbones": {name: measure_backbone(load_backbone(name, "tiny")) for name in BACKBONES},
    }


@torch.no_grad()
def codec_report(model: UnifiedModel, min_objects: int = 1000) -> dict[str, Any]:
    """Pixels to latents or tokens and back: what the detector still reads exactly, and the peak
    signal-to-noise ratio in dB."""
    scenes = scenes_with(min_objects, "test")
    images = pictures(scenes)
    decoded = torch.cat([model.decoder.round_trip(part) for part in images.split(64)])
    return {**fidelity(scenes, decoded).to_json(), "psnr": psnr(images, decoded)}
