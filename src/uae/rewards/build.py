"""Rewards by name and weight; weight 0 is logged only, as a held-out backbone should be.

| name                           | how close                                                      |
|--------------------------------|----------------------------------------------------------------|
| clip, longclip, dinov2, dinov3 | reconstruction and source under a backbone                     |
| image_text                     | caption and source under CLIP: no picture is judged            |
| clip_score                     | reconstruction and caption, or prompt, under CLIP              |
| caption_likelihood             | reconstruction and caption, as the model itself reads them     |
| ssim                           | pixels                                                         |
| objects                        | objects of the embedded world, by its detector                 |
| judge                          | what a prompt of the embedded world requires, in grades        |
| caption_objects                | what the caption says of the world's picture: none is judged   |
| ocr                            | the text in both pictures, as an OCR engine reads it           |
| MODULE:FUNCTION                | whatever a function of the signature ``uae.types.Reward`` says |
"""

from __future__ import annotations

from collections.abc import Mapping

from uae.rewards.base import Component, WeightedSum
from uae.rewards.likelihood import CaptionLikelihood, check_judge
from uae.rewards.ocr import check_ocr
from uae.rewards.reconstruction import CLIPScore, ImageTextReward, ReconstructionReward
from uae.similarity.backbones import Backbone
from uae.similarity.checkpoints import ARCHITECTURES, check_backbone_source
from uae.utils.importing import import_named
from uae.utils.suggest import did_you_mean

FUNCTIONS = {  # each found where it lies when it is asked for
    "ssim": "uae.rewards.ssim:ssim",
    "objects": "uae.world.reward:objects",
    "judge": "uae.world.reward:graded",
    "caption_objects": "uae.world.reward:caption_objects",
    "ocr": "uae.rewards.ocr:ocr",
}
IMAGE_TEXT, CLIP_SCORE, THEIR_BACKBONE = "image_text", "clip_score", "clip"
CAPTION_LIKELIHOOD = "caption_likelihood"
KNOWN = (*ARCHITECTURES, IMAGE_TEXT, CLIP_SCORE, CAPTION_LIKELIHOOD, *FUNCTIONS)
NEED_SOURCES = (*ARCHITECTURES, IMAGE_TEXT, "ssim", "objects", "caption_objects")
"""Rewards that compare with the image that was captioned."""


def check_rewards(weights: Mapping[str, float], source: str | None) -> None:
    """Every reward exists and can be loaded; cheap, for before any work.

    source: ``tiny`` for the world's backbones, None for the published checkpoints.
    """
    for name in weights:
        if path := _path_of(name):
            import_named(path, "reward")
        elif name not in KNOWN:
            hint = did_you_mean(name, KNOWN)
            raise ValueError(
                f"unknown reward {name!r}: expected one of {', '.join(KNOWN)}, or "
                f"MODULE:FUNCTION{hint}"
            )
        if name == "ocr":
            check_ocr()
    for name in backbones_of(weights):
        check_backbone_source(name, source)


def check_rewards_of_prompts(weights: Mapping[str, float], is_worlds: bool) -> None:
    """Every reward can judge pictures of prompts, which have no source.

    is_worlds: whether the prompts are the embedded world's, which know what they require.
    """
    wrong = [name for name in weights if name in NEED_SOURCES]
    if wrong:
        raise ValueError(
            f"rewards {', '.join(wrong)}: expected rewards of prompt and picture where prompts are "
            "painted, as there is no source to compare with; take clip_score, caption_likelihood, "
            "ocr, judge or a function of your own"
        )
    if "judge" in weights and not is_worlds:
        raise ValueError(
            "reward judge: expected prompts of the embedded world, which know what they require; "
            "give --prompts world, or take caption_likelihood"
        )


def backbones_of(weights: Mapping[str, float]) -> list[str]:
    """The backbones that these rewards need."""
    names = [THEIR_BACKBONE if n in (IMAGE_TEXT, CLIP_SCORE) else n for n in weights]
    return [name for name in dict.fromkeys(names) if name in ARCHITECTURES]


def build_reward(
    weights: Mapping[str, float],
    backbones: Mapping[str, Backbone],
    captioner: object = None,
    instruction: str = "",
) -> WeightedSum:
    """The rewards, summed with these weights.

    backbones: loaded, those that they need. captioner, instruction: who judges
    `caption_likelihood`, and what is asked.
    """

    def component(name: str) -> Component:
        if path := _path_of(name):
            return import_named(path, "reward")
        if name == CAPTION_LIKELIHOOD:
            return CaptionLikelihood(check_judge(captioner), instruction)
        if name == IMAGE_TEXT:
            return ImageTextReward(backbones[THEIR_BACKBONE])
        if name == CLIP_SCORE:
            return CLIPScore(backbones[THEIR_BACKBONE])
        return ReconstructionReward(backbones[name])

    return WeightedSum({name: (weight, component(name)) for name, weight in weights.items()})


def _path_of(name: str) -> str | None:
    """MODULE:FUNCTION of a reward that is a function."""
    return name if ":" in name else FUNCTIONS.get(name)
