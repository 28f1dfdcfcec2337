"""Rewards by name and weight; weight 0 is logged only, as a held-out backbone should be.

| name                             | how close                                                            |
|----------------------------------|----------------------------------------------------------------------|
| clip, longclip, dinov2, dinov3   | the reconstruction comes to the source under a backbone              |
| image_text                       | the caption comes to the source under CLIP: no picture is judged     |
| caption_likelihood               | the reconstruction comes to its caption, as the model itself reads it |
| ssim                             | pixels come                                                          |
| objects                          | the world's objects come, by its detector                            |
| ocr                              | the text in them comes, as an OCR engine reads it                    |
| MODULE:FUNCTION                  | whatever a function of the signature ``uae.types.Reward`` says       |
"""

from __future__ import annotations

from collections.abc import Mapping

from uae.rewards.backbones import Backbone, check_backbone_source
from uae.rewards.base import Component, WeightedSum
from uae.rewards.ocr import check_ocr, ocr
from uae.rewards.pictures import objects, ssim
from uae.rewards.reconstruction import CaptionLikelihood, ImageTextReward, ReconstructionReward, check_judge
from uae.rewards.sources import ARCHITECTURES
from uae.utils.importing import import_named
from uae.utils.suggest import did_you_mean

FUNCTIONS: dict[str, Component] = {"ssim": ssim, "objects": objects, "ocr": ocr}
IMAGE_TEXT, ITS_BACKBONE = "image_text", "clip"
CAPTION_LIKELIHOOD = "caption_likelihood"
KNOWN = (*ARCHITECTURES, IMAGE_TEXT, CAPTION_LIKELIHOOD, *FUNCTIONS)


def check_rewards(weights: Mapping[str, float], source: str | None) -> None:
    """Every reward exists and can be loaded; cheap, for before any work.

    source: ``tiny`` for the world's backbones, None for the published checkpoints.
    """
    for name in weights:
        if ":" in name:
            import_named(name, "reward")
        elif name not in KNOWN:
            hint = did_you_mean(name, KNOWN)
            raise ValueError(f"unknown reward {name!r}: expected one of {', '.join(KNOWN)}, or MODULE:FUNCTION{hint}")
        elif name == "ocr":
            check_ocr()
    for name in backbones_of(weights):
        check_backbone_source(name, source)


def backbones_of(weights: Mapping[str, float]) -> list[str]:
    """The backbones that these rewards need."""
    needed = [ITS_BACKBONE if name == IMAGE_TEXT else name for name in weights]
    return [name for name in dict.fromkeys(needed) if name in ARCHITECTURES]


def build_reward(
    weights: Mapping[str, float], backbones: Mapping[str, Backbone], captioner: object = None, instruction: str = ""
) -> WeightedSum:
    """The rewards, summed with these weights.

    backbones: loaded, those that they need. captioner, instruction: who judges `caption_likelihood`, and what is asked.
    """

    def component(name: str) -> Component:
        if ":" in name:
            return import_named(name, "reward")
        if name == CAPTION_LIKELIHOOD:
            return CaptionLikelihood(check_judge(captioner), instruction)
        if name == IMAGE_TEXT:
            return ImageTextReward(backbones[ITS_BACKBONE])
        return FUNCTIONS.get(name) or ReconstructionReward(backbones[name])

    return WeightedSum({name: (weight, component(name)) for name, weight in weights.items()})
