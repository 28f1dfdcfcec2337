"""``uae tiny measure``: what the shipped models can do before any reinforcement learning."""

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
from uae.world.captions import captions_by_instruction
from uae.world.data import pictures
from uae.world.fidelity import decoder_report, fidelity, psnr, scenes_with
from uae.world.quality import measure_backbone
from uae.world.questions import perception
from uae.world.scene import first_scenes

DECODINGS = {  # by family; of UMM-1, that of the quickstart's reward and that of its evaluation
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
    """Codec, decoder from exhaustive true captions by each decoding, captioner, four backbones."""
    scenes = first_scenes("test", NUM_SCENES)
    return {
        "codec": codec_report(model, min_objects),
        "decoder": {
            name: _decoder_report(model, min_objects, decoding)
            for name, decoding in decodings.items()
        },
        "captions": captions_by_instruction(model, scenes),
        "questions": shares_to_json(perception(model, scenes, num_questions=5 * NUM_SCENES)),
        "backbones": {name: measure_backbone(load_backbone(name, "tiny")) for name in BACKBONES},
    }


def _decoder_report(
    model: UnifiedModel, min_objects: int, decoding: DecodeSettings
) -> dict[str, Any]:
    report = decoder_report(model, min_objects=min_objects, decoding=decoding)
    return {case: result.to_json() for case, result in report.items()}


@torch.no_grad()
def codec_report(model: UnifiedModel, min_objects: int = 1000) -> dict[str, Any]:
    """Pixels to latents or tokens and back: what survives, and the PSNR in dB."""
    scenes = scenes_with(min_objects, "test")
    images = pictures(scenes)
    decoded = torch.cat([model.decoder.round_trip(batch) for batch in images.split(64)])
    return {**fidelity(scenes, decoded).to_json(), "psnr": psnr(images, decoded)}
