"""Draws belong to an image's key: what else is in its batch, and where it stands there, changes
nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.rl.tiny_run import build_model
from uae.autoencode import AutoEncoding, autoencode
from uae.config import CaptionSettings, DecodeSettings
from uae.world.models import build_janus
from uae.world.scene import render_batch, scene_at

KEYS = (2**40 - 1, 7, 123456789)
SAMPLED = CaptionSettings(temperature=1.0, max_new_tokens=6)
CASES = {
    "noise": ("umm1", DecodeSettings(2)),
    "random steps": ("umm1", DecodeSettings(2, sampler="sde", noise_level=0.7)),
    "image tokens": ("umm2", DecodeSettings(temperature=1.0, guidance_scale=2.0)),
}


@pytest.fixture(scope="module")
def models() -> dict:
    torch.manual_seed(0)
    return {"umm1": build_model(), "umm2": build_janus()}


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return list(torch.from_numpy(render_batch([scene_at("test", i) for i in range(3)])))


def run(
    model, images: list[Tensor], decoding: DecodeSettings, keys, group: int = 2
) -> AutoEncoding:
    return autoencode(
        model,
        images,
        SAMPLED,
        decoding,
        captions_per_image=group,
        reconstructions_per_caption=group,
        seed=3,
        step=5,
        keys=keys,
    )


def eight_bits(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.int)


@pytest.mark.parametrize("case", CASES)
def test_an_image_alone_is_captioned_and_painted_as_in_any_batch(
    models: dict, images: list[Tensor], case: str
):
    """Captions are the same words. Pictures are compared in 8 bits, to one level: matrix products
    of another batch size may differ in their last bits."""
    family, decoding = CASES[case]
    together = run(models[family], images, decoding, KEYS)
    for i, key in enumerate(KEYS):
        alone = run(models[family], [images[i]], decoding, [key])
        assert alone.captions.texts == together.captions.texts[2 * i : 2 * i + 2]
        painted = together.reconstructions.images[4 * i : 4 * i + 4]
        gap = (eight_bits(alone.reconstructions.images) - eight_bits(painted)).abs()
        assert gap.max() <= 1
        assert (gap == 0).float().mean() > 0.99
    other = run(models[family], images, decoding, KEYS[::-1]).reconstructions.images
    assert not torch.equal(eight_bits(other), eight_bits(together.reconstructions.images))


@pytest.mark.parametrize("case", CASES)
def test_by_default_the_key_is_the_place(models: dict, images: list[Tensor], case: str):
    family, decoding = CASES[case]
    plain, keyed = (run(models[family], images, decoding, keys) for keys in (None, [0, 1, 2]))
    assert plain.captions.texts == keyed.captions.texts
    assert torch.equal(plain.reconstructions.images, keyed.reconstructions.images)


def test_captions_and_pictures_of_one_image_differ(models: dict, images: list[Tensor]):
    painted = run(models["umm2"], images[:1], CASES["image tokens"][1], [9]).reconstructions.images
    assert len({image.numpy().tobytes() for image in painted}) == 4
    greedy = replace(SAMPLED, temperature=0.0)
    decoding = DecodeSettings(2)
    twice = autoencode(
        models["umm1"], images[:1], greedy, decoding, captions_per_image=2, seed=3, keys=[9]
    )
    first, second = twice.reconstructions.images
    assert torch.equal(first, second)  # equal captions of one image start from one noise
