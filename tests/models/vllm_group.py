"""Captions by vLLM in a process group, by an engine a process or by a server: ``torchrun …
vllm_group.py FOLDER SERVER``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.rl import tiny_run
from uae.config import CaptionSettings, VLLMSettings
from uae.models.encoders.qwen_vl import QwenVL
from uae.rl.train import train
from uae.world.data import SceneImages
from uae.world.scene import render_batch, scene_at


def main(folder: Path, server: str) -> None:
    """Each process captions a share of the images; what it said, and what the group still is."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    encoder = Path(__file__).parents[2] / "src/uae/assets/umm1/encoder"
    captioner = QwenVL.from_pretrained(encoder)
    places = range(rank, 4, size)
    images = list(torch.from_numpy(render_batch([scene_at("test", i) for i in places])))
    settings = VLLMSettings(max_length=1024, cache_gb=0.25, server=server)
    with captioner.sampled_by_vllm(settings):
        captions = captioner.caption(images, CaptionSettings(), group_size=2, seed=1, keys=places)
    total = torch.ones(1)
    dist.all_reduce(total)  # the group is still there
    said = {place: captions.texts[2 * i : 2 * i + 2] for i, place in enumerate(places)}
    (folder / f"{rank}.json").write_text(json.dumps([size, total.item(), said]))
    if server:
        learn(folder.with_name(f"{folder.name}-run"), settings)
    dist.destroy_process_group()


def learn(folder: Path, settings: VLLMSettings) -> None:
    """Two steps of a run, together."""
    changes = {"caption_sampler": "vllm", "vllm": settings, "use_bf16": False}
    config = tiny_run.config(2, **changes)
    train(tiny_run.build_model(), tiny_run.reward(), SceneImages(), config, folder, {})


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(Path(sys.argv[1]), sys.argv[2])
