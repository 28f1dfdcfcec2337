"""UMM-1 as a whole: what the decoder is conditioned on, whose weights encode it, and which noise it
starts from."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from tests.rl.tiny_run import build_model
from uae.autoencode import autoencode
from uae.config import CaptionSettings, DecodeSettings
from uae.models.llm_diffusion import LLMDiffusion
from uae.models.load import device_for
from uae.world.scene import render_batch, scene_at

SAY, PAINT = CaptionSettings(max_new_tokens=6), DecodeSettings(num_steps=2)


@pytest.fixture
def model() -> LLMDiffusion:
    model = build_model()
    with torch.no_grad():
        torch.nn.init.normal_(
            model.decoder.transformer.proj_out.weight, std=0.5
        )  # starts at zero: blind to its input
        for block in model.decoder.transformer.transformer_blocks:
            torch.nn.init.normal_(block.norm1.linear.weight, std=0.05)
    return model


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    return list(torch.from_numpy(render_batch([scene_at("test", i) for i in range(2)])))


def move(model: LLMDiffusion) -> None:
    """As training would: the language model is no longer its reference."""
    with torch.no_grad():
        for parameter in model.encoder.named_trainable_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))


def test_captions_of_one_image_share_their_noise(model: LLMDiffusion, images: list[torch.Tensor]):
    """Equal captions of one image give equal pictures; of two images, different ones."""
    captions = model.caption(images, SAY, group_size=2)
    captions.texts[:] = ["a red circle"] * 4
    painted = model.reconstruct(captions, PAINT).images
    assert torch.equal(painted[0], painted[1]) and torch.equal(painted[2], painted[3])
    assert not torch.allclose(painted[0], painted[2], atol=1e-3)


def test_several_reconstructions_of_a_caption_differ(
    model: LLMDiffusion, images: list[torch.Tensor]
):
    captions, reconstructions = autoencode(
        model, images, SAY, PAINT, captions_per_image=2, reconstructions_per_caption=3
    )
    assert len(captions) == 4 and len(reconstructions.images) == 12
    first = reconstructions.images[:3]
    assert not torch.allclose(first[0], first[1], atol=1e-3) and not torch.allclose(
        first[1], first[2], atol=1e-3
    )


def test_pictures_depend_on_the_text_alone(model: LLMDiffusion, images: list[torch.Tensor]):
    """Text conditioning is a true bottleneck: the same words paint the same, whatever image they
    were said of."""
    captions = model.caption(images, SAY)
    painted = model.reconstruct(captions, PAINT).images
    again = model.generate(captions.texts, PAINT).images
    torch.testing.assert_close(painted, again, atol=1e-5, rtol=0)
    other = model.generate([captions.texts[0], "a large blue square center"], PAINT).images
    assert not torch.allclose(other[1], painted[1], atol=1e-4)


def test_equal_captions_of_an_image_are_painted_once(
    model: LLMDiffusion, images: list[torch.Tensor]
):
    captions = model.caption(images[:2], SAY, group_size=2)
    captions.texts = ["a red circle", "a red circle", "a red circle", "some shapes"]
    painted = []
    paint = model._paint
    model._paint = lambda states, *rest: painted.append(len(states)) or paint(states, *rest)
    found = rearrange(
        model.reconstruct(captions, PAINT, group_size=2).images, "(b k) c h w -> b k c h w", k=2
    )
    assert painted == [3]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0, 0], found[0, 1], atol=1e-3)  # the two of one caption
    assert not torch.allclose(found[1], found[2], atol=1e-3)  # another image: other noise
    alone = model.reconstruct(
        model.caption(images[:2], SAY, group_size=2), PAINT, group_size=2
    ).images
    assert alone.shape == (8, 3, 48, 48)


def test_hidden_conditioning_also_sees_the_image(model: LLMDiffusion, images: list[torch.Tensor]):
    captions = model.caption(images, SAY)
    captions.rollout.actions[1] = captions.rollout.actions[0]  # the same words of two images
    captions.rollout.mask[1] = captions.rollout.mask[0]
    model.conditioning = "hidden"
    states, _ = model.condition(captions)
    assert not torch.allclose(states[0], states[1], atol=1e-3)


def test_the_policy_moves_its_own_conditioning_and_the_reference_does_not(model: LLMDiffusion):
    texts = ["a red circle top-left"]
    by_policy = model.generate(texts, PAINT).images
    move(model)
    assert not torch.allclose(model.generate(texts, PAINT).images, by_policy, atol=1e-4)
    model.text_encoder = "reference"
    torch.testing.assert_close(model.generate(texts, PAINT).images, by_policy, atol=1e-5, rtol=0)


def test_guidance_leads_away_from_the_negative_prompt(model: LLMDiffusion):
    guided = DecodeSettings(num_steps=2, guidance_scale=4.0)
    texts = ["a red circle top-left"]
    model.negative_prompt = "a red circle top-left"
    same = model.generate(texts, guided).images
    torch.testing.assert_close(same, model.generate(texts, PAINT).images, atol=1e-4, rtol=0)
    model.negative_prompt = "some shapes"
    assert not torch.allclose(model.generate(texts, guided).images, same, atol=1e-3)


def test_an_empty_caption_is_painted_too(model: LLMDiffusion):
    painted = model.generate(["", "a red circle"], PAINT).images
    assert painted.isfinite().all() and painted.shape == (2, 3, 48, 48)


def test_large_models_go_to_the_gpu(monkeypatch: pytest.MonkeyPatch):
    assert device_for(3_000_000_000) == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_for(3_000_000_000) == "cuda" and device_for(9_000_000) == "cpu"
