"""What a step samples: captions of images and reconstructions of these, pictures of prompts, or
both. Where several processes train, each samples a share of either.

A prompt is the one text of its group (G = 1), whose K pictures are compared with each other. Where
images come with prompts, captions are learnt from the images, each painted once for its reward, and
painting from the prompts: a *joint* step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from uae.autoencode import autoencode
from uae.models.base import UnifiedModel
from uae.rl.config import TrainConfig
from uae.types import Batch, Captions, ImageSource, Prompt, PromptSource, Reconstructions
from uae.utils.processes import num_processes, own_share, slice_of
from uae.utils.ranges import refuse_if

OF_PROMPTS = "prompts/"
"""Before the names of a joint step's metrics of pictures of prompts."""


@dataclass(frozen=True)
class SubBatch:
    """What of a batch is judged by one reward, this process's share: P images, or P prompts; the
    other is empty."""

    images: list[Tensor]
    prompts: list[Prompt]
    places: range
    """Of these among the step's images or prompts: their draws go by it."""
    config: TrainConfig
    """How it is sampled and learnt from."""
    prefix: str = ""
    """Of its metrics."""

    @property
    def kind(self) -> str:
        return "prompts" if self.prompts else "images"

    def texts(self, captions: Captions | None) -> list[str]:
        """What was painted."""
        return captions.texts if captions else [prompt.text for prompt in self.prompts]


class JointSource(NamedTuple):
    """Images to caption, and prompts to paint, as many of either."""

    images: ImageSource
    prompts: PromptSource

    def batch(self, step: int, num_images: int) -> Batch:
        return [*self.images.batch(step, num_images), *self.prompts.batch(step, num_images)]

    def probe(self, num_images: int) -> Batch:
        """Images alone: drift is of the captions' text encoder."""
        return self.images.probe(num_images)


def sub_batches(batch: Batch, config: TrainConfig) -> list[SubBatch]:
    """This process's share of the images and prompts of a batch, apart."""
    images, prompts = images_and_prompts(batch)
    if prompts:
        check_prompts(config, with_images=bool(images))
    places = own_share(len(images) or len(prompts))
    own = slice_of(places)
    if not images or not prompts:
        return [SubBatch(images[own], prompts[own], places, config)]
    return [
        SubBatch(images[own], [], places, captions_alone(config)),
        SubBatch([], prompts[own], places, painting_alone(config), OF_PROMPTS),
    ]


def captions_alone(config: TrainConfig) -> TrainConfig:
    """How captions are learnt in a joint step: painted once, without noise (image tokens
    greedily), and nothing is learnt from that."""
    return replace(
        config,
        image_weight=0.0,
        reconstructions_per_caption=1,
        decoding=replace(config.decoding, sampler="ode", shared_noise=False, temperature=0.0),
        window_interval=None,
        decoder_update="policy_gradient",
        decoder_learning_rate=None,
        pull_coef=0.0,
        matching_coef=0.0,
    )


def painting_alone(config: TrainConfig) -> TrainConfig:
    """How painting is learnt in a joint step: from texts as they are."""
    return replace(config, caption_weight=0.0, group_size=1)


def roll_out(
    model: UnifiedModel, sub_batch: SubBatch, step: int
) -> tuple[Captions | None, Reconstructions]:
    """Captions, where there are images to be captioned, and what was painted."""
    config = sub_batch.config
    if sub_batch.images:
        return autoencode(
            model,
            sub_batch.images,
            config.captioning_at(step),
            config.decoding_at(step),
            captions_per_image=config.group_size,
            reconstructions_per_caption=config.reconstructions_per_caption,
            seed=config.seed,
            step=step,
            keys=sub_batch.places,
        )
    reconstructions = model.generate(
        sub_batch.texts(None),
        config.decoding_at(step),
        group_size=config.reconstructions_per_caption,
        seed=config.seed,
        step=step,
        keys=sub_batch.places,
    )
    if reconstructions.rollout is None:
        raise ValueError(
            "decoding.sampler: expected sde or cps where prompts are painted, or decoder-update "
            "nft or awm, got ode, whose pictures nothing can be learnt from"
        )
    return None, reconstructions


def images_and_prompts(batch: Batch) -> tuple[list[Tensor], list[Prompt]]:
    """Either may be empty."""
    images = [each for each in batch if isinstance(each, Tensor)]
    return images, [each for each in batch if not isinstance(each, Tensor)]


def check_shares(config: TrainConfig) -> None:
    """A ValueError where a process would have nothing of what a step takes."""
    shared = {
        "images_per_step": True,
        "pairs_per_step": config.matching_coef > 0,
        "questions_per_step": config.anchor_coef > 0,
        "texts_per_step": config.text_anchor_coef > 0,
    }
    for name, is_taken in shared.items():
        if is_taken and getattr(config, name) < num_processes():
            raise ValueError(
                f"train.{name.replace('_', '-')}: expected at least {num_processes()}, one for "
                f"each process, got {getattr(config, name)}; start fewer processes"
            )


def check_prompts(config: TrainConfig, *, with_images: bool) -> None:
    """A ValueError where nothing could be learnt from prompts, or from the images beside them."""
    refuse_if(
        (
            config.image_weight == 0,
            "train.image-weight: expected above 0 where prompts are painted, got 0",
        ),
        (
            config.caption_weight > 0 and not with_images,
            (
                "train.caption-weight: expected 0 where prompts are painted, as nothing is "
                f"captioned, got {config.caption_weight}"
            ),
        ),
        (
            config.group_size > 1 and not with_images,
            (
                "train.group-size: expected 1 where prompts are painted, as each is one text, got "
                f"{config.group_size}; pictures of a prompt are counted by "
                "train.reconstructions-per-caption"
            ),
        ),
        (
            config.caption_weight == 0 and with_images,
            (
                "train.caption-weight: expected above 0 where images come with prompts, as their "
                "captions are all that is learnt from them, got 0"
            ),
        ),
        (
            config.reconstructions_per_caption == 1,
            (
                "train.reconstructions-per-caption: expected at least 2 where prompts are "
                "painted, as the pictures of a prompt are compared with each other, got 1"
            ),
        ),
    )
