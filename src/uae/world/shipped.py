"""What the shipped models can do before any reinforcement learning, on held-out scenes: ``uae tiny
measure``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uae.bench.result import shares_to_json
from uae.bench.unified import BACKBONES
from uae.config import DecodeSettings
from uae.models.base import UnifiedModel
from uae.models.load import load_model
from uae.similarity.backbones import load_backbone
from uae.utils.files import atomic_write_json
from uae.utils.outputs import check_out_file
from uae.world.fidelity import decoder_report, fidelity, psnr, scenes_with
from uae.world.measure import captions_by_instruction, perception, pictures
from uae.world.quality import measure_backbone
from uae.world.scene import scene_at

DECODINGS = {  # by family: for UMM-1 the quickstart's reward, and its evaluation
    "umm1": {f"{num_steps} steps": DecodeSettings(num_steps) for num_steps in (10, 20)},
    "umm2": {
        "sampled": DecodeSettings(),
        "sampled, guidance 2": DecodeSettings(guidance_scale=2.0),
        "greedy": DecodeSettings(temperature=0.0),
    },
}
NUM_SCENES = 400  # for captions and questions


@dataclass(frozen=True)
class MeasureSettings:
    """Measure a tiny model on held-out scenes: VAE or VQ model, decoder from true captions,
    captioner, backbones."""

    model: str = "tiny"
    """`tiny`, or a folder that uae wrote."""
    out: Path = Path("tiny_model.json")
    """Result file."""


def measure_shipped(settings: MeasureSettings) -> dict[str, Any]:
    """Measure, and write the numbers."""
    check_out_file(settings.out)
    model: Any = load_model(settings.model)
    decodings = DECODINGS.get(model.family, {"as it paints": model.decoding})
    results = measure_parts(model, decodings)
    atomic_write_json(settings.out, results)
    return results


def measure_parts(
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
