"""The stages in which a decoder learns from a loss with a gradient, a few steps of each:
``python learn_together.py FOLDER SHARD``, started by ``torchrun``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from uae.config import CaptionSettings, DecodeSettings
from uae.stages.base import Assignment, Stage
from uae.stages.cold_start import ColdStart, ColdStartConfig
from uae.stages.long_captions import LongCaptionConfig, LongCaptions
from uae.utils.files import appear
from uae.utils.processes import join, leave, of_main, speaking_once
from uae.world.data import SceneImages
from uae.world.pairs import write_captioned_scenes

STEPS = 3


def learn(folder: Path, shard: Any = "nothing") -> None:
    """From the shipped model, on three samples a step."""
    pairs = folder / "pairs"
    if not of_main(pairs.exists()):
        appear(pairs, lambda unfinished: write_captioned_scenes(unfinished, 20))
    stages: dict[str, Stage] = {
        "long_captions": LongCaptions(
            LongCaptionConfig(
                data=(str(pairs),),
                num_steps=STEPS,
                batch_size=3,
                resolution=48,
                pool_size=8,
                num_held_out=2,
                lora_rank=2,
                caption_dropout=0.5,
                shard=shard,
            )
        ),
        "cold_start": ColdStart(
            ColdStartConfig(
                num_steps=STEPS,
                images_per_step=3,
                captioning=CaptionSettings(max_new_tokens=8),
                decoding=DecodeSettings(num_steps=2),
                use_bf16=False,
                shard=shard,
            ),
            SceneImages,
        ),
    }
    for name, stage in stages.items():
        stage.run(Assignment("tiny", folder / name, "tiny"))


if __name__ == "__main__":
    join()
    with speaking_once():
        learn(Path(sys.argv[1]), sys.argv[2])
    leave()
