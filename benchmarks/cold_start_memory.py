"""Memory and time of the cold start's gradient through the decoder's steps, kept or computed again.

    python benchmarks/cold_start_memory.py   # 16 images of the tiny UMM-1; steps 1 2 4 8 16

Bytes are those that autograd keeps between forward and backward, so they are the same on every
machine; seconds are of one forward and backward, the median of 3.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from uae.config import DecodeSettings
from uae.models.llm_diffusion import LLMDiffusion
from uae.stages import cold_start
from uae.world.language import exhaustive_caption
from uae.world.models import build_captioner, build_decoder, build_llm_diffusion, build_vae
from uae.world.scene import scene_at

NUM_IMAGES, NUM_STEPS = 16, (1, 2, 4, 8, 16)


def main() -> None:
    """Print a table, and the same as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    torch.manual_seed(0)
    model = build_llm_diffusion(build_captioner(), build_decoder(build_vae()))
    model.requires_grad_(False)
    model.decoder.transformer.requires_grad_(True)
    recomputed, rows = cold_start._recomputed, []
    for num_steps in NUM_STEPS:
        for name, wrapper in (("kept", lambda function: function), ("recomputed", recomputed)):
            cold_start._recomputed = wrapper
            megabytes, seconds = measure(model, num_steps)
            rows.append(
                {
                    "steps": num_steps,
                    "activations": name,
                    "megabytes": megabytes,
                    "seconds": seconds,
                }
            )
            print(
                f"{num_steps:3} steps, activations {name:10}  {megabytes:8.1f} MB  {seconds:6.2f} s"
            )
    print(json.dumps(rows))


def measure(model: LLMDiffusion, num_steps: int) -> tuple[float, float]:
    """Megabytes kept for the way back, at their highest, and seconds of both ways."""
    texts = [exhaustive_caption(scene_at("test", i)) for i in range(NUM_IMAGES)]
    seconds, highest = [], 0.0
    for _ in range(3):
        start, count = time.perf_counter(), Kept()
        with torch.autograd.graph.saved_tensors_hooks(count.pack, count.unpack):
            painted = cold_start.paint_differentiably(
                model, texts, DecodeSettings(num_steps=num_steps)
            )
        painted.square().mean().backward()
        seconds.append(time.perf_counter() - start)
        highest = max(highest, count.megabytes)
        model.zero_grad(set_to_none=True)
    return highest, statistics.median(seconds)


class Kept:
    """Counts each storage that autograd keeps once."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self.seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    @staticmethod
    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    @property
    def megabytes(self) -> float:
        return sum(self.seen.values()) / 1e6


if __name__ == "__main__":
    main()
