"""What a step samples: captions of images and reconstructions of these, or pictures of prompts.

Where prompts are given, painting alone learns: each is the one text of its group (G = 1), whose K
pictures are compared with each other.
"""

from __future__ import annotations

from torch import Tensor

from uae.autoencode import autoencode
from uae.models.base import UnifiedModel
from uae.rl.config import TrainConfig
from uae.types import Batch, Captions, Prompt, Reconstructions
from uae.utils.ranges import refuse_if


def roll_out(
    model: UnifiedModel, batch: Batch, config: TrainConfig, step: int
) -> tuple[Captions | None, Reconstructions]:
    """Captions, where there are images to be captioned, and what was painted."""
    images, prompts = images_and_prompts(batch)
    if not prompts:
        return autoencode(
            model,
            images,
            config.captioning_at(step),
            config.decoding_at(step),
            captions_per_image=config.group_size,
            reconstructions_per_caption=config.reconstructions_per_caption,
            seed=config.seed,
            step=step,
        )
    check_paints_alone(config)
    return None, model.generate(
        [prompt.text for prompt in prompts],
        config.decoding_at(step),
        group_size=config.reconstructions_per_caption,
        seed=config.seed,
        step=step,
    )


def images_and_prompts(batch: Batch) -> tuple[list[Tensor], list[Prompt]]:
    """One of both; the other is empty."""
    images = [each for each in batch if isinstance(each, Tensor)]
    return images, [each for each in batch if not isinstance(each, Tensor)]


def check_paints_alone(config: TrainConfig) -> None:
    """A ValueError where something else than painting would learn from prompts."""
    refuse_if(
        (
            config.caption_weight > 0,
            (
                "train.caption-weight: expected 0 where prompts are painted, as nothing is "
                f"captioned, got {config.caption_weight}"
            ),
        ),
        (
            config.group_size > 1,
            (
                "train.group-size: expected 1 where prompts are painted, as each is one text, got "
                f"{config.group_size}; pictures of a prompt are counted by "
                "train.reconstructions-per-caption"
            ),
        ),
    )
