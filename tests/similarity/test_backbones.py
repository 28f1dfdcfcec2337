"""Backbones against ``transformers``' own processors and classes, at the published width and
preprocessing."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPModel,
    Dinov2Model,
    DINOv3ViTModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import is_torchvision_available

from tests.similarity.images import IMAGENET, assert_same_direction, photographs, to_tensor
from uae.similarity.backbones import EmbeddingCache, load_backbone
from uae.similarity.checkpoints import BackboneError


@torch.no_grad()
def test_clip_equals_transformers(clip_folder):
    images = photographs()
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(
        [Image.fromarray(x) for x in images], return_tensors="pt"
    )
    expected = (
        CLIPModel.from_pretrained(clip_folder).eval().get_image_features(**pixels).pooler_output
    )
    assert expected.shape == (len(images), 768)
    assert_same_direction(
        load_backbone("clip", clip_folder).embed([to_tensor(x) for x in images]), expected
    )


@torch.no_grad()
def test_dinov2_equals_transformers(dinov2_folder):
    images = photographs()
    pixels = BitImageProcessorPil.from_pretrained(dinov2_folder)(
        [Image.fromarray(x) for x in images], return_tensors="pt"
    )
    expected = Dinov2Model.from_pretrained(dinov2_folder).eval()(**pixels).last_hidden_state[:, 0]
    assert expected.shape == (len(images), 1024)
    assert_same_direction(
        load_backbone("dinov2", dinov2_folder).embed([to_tensor(x) for x in images]), expected
    )


def dinov3_pixels(folder, images: list[np.ndarray]) -> Tensor:
    """The class's own processor where torchvision is installed, else its documented arithmetic."""
    if is_torchvision_available():
        from transformers import DINOv3ViTImageProcessor

        processor = DINOv3ViTImageProcessor.from_pretrained(folder)
        return processor([Image.fromarray(x) for x in images], return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(IMAGENET[key])[:, None, None] for key in ("image_mean", "image_std"))
    rescaled = [torch.tensor(x).permute(2, 0, 1)[None] * (1 / 255) for x in images]
    resized = [
        nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True) for x in rescaled
    ]
    return (torch.cat(resized) - mean) / std


@torch.no_grad()
def test_dinov3_equals_transformers(dinov3_folder):
    images = photographs()
    model = DINOv3ViTModel.from_pretrained(dinov3_folder).eval()
    expected = model(pixel_values=dinov3_pixels(dinov3_folder, images)).last_hidden_state[:, 0]
    assert_same_direction(
        load_backbone("dinov3", dinov3_folder).embed([to_tensor(x) for x in images]), expected
    )


@pytest.mark.parametrize("size", [48, 64])
def test_gradient_reaches_the_pixels(small_folder, size):
    backbone = load_backbone("clip", small_folder)
    target = backbone.embed(torch.rand(1, 3, size, size))
    images = (torch.randint(60, 200, (1, 3, size, size)) / 255).requires_grad_()
    similarity = (backbone.embed(images) * target).sum()
    similarity.backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert all(parameter.grad is None for parameter in backbone.parameters())

    ascent = (
        images.detach() + images.grad.sign() / 255
    )  # one level up or down, which rounding keeps
    assert (backbone.embed(ascent) * target).sum() > similarity + 1e-4
    if size == 48:  # no rounding on the way: finite differences give the same slope
        step = 1e-2 * images.grad / images.grad.norm()
        slope = (
            (backbone.embed(images.detach() + step) - backbone.embed(images.detach() - step))
            * target
        ).sum() / 2e-2
        assert slope.item() == pytest.approx(images.grad.norm().item(), rel=0.05)


def test_stays_frozen_inside_a_training_model(small_folder):
    parent = nn.ModuleList([load_backbone("clip", small_folder), nn.Dropout()]).train()
    assert parent[1].training
    assert not any(module.training for module in parent[0].modules())
    assert not any(parameter.requires_grad for parameter in parent[0].parameters())


@torch.no_grad()
def test_texts(small_folder):
    backbone = load_backbone("clip", small_folder)
    embeddings = backbone.embed_text(
        ["a red dot", "a blue dot", "a red dot", "", " ".join(["red"] * 50)]
    )
    torch.testing.assert_close(embeddings[0], embeddings[2])
    assert (embeddings[0] @ embeddings[1]) < 1 - 1e-4
    unpadded = backbone.embed_text(["a red dot"])  # padding changes nothing
    torch.testing.assert_close(unpadded[0], embeddings[0])


def test_no_tokenizer_is_named(clip_folder):
    with pytest.raises(BackboneError, match="tokenizer"):
        load_backbone("clip", clip_folder).embed_text(["a dot"])


def test_cache_computes_each_image_once(small_folder, tmp_path, monkeypatch):
    backbone = load_backbone("clip", small_folder)
    images = torch.rand(3, 3, 48, 48)
    calls = []
    embed = backbone.embed
    monkeypatch.setattr(backbone, "embed", lambda x: calls.append(len(x)) or embed(x))
    cache = EmbeddingCache(tmp_path)
    expected = embed(images)
    torch.testing.assert_close(cache.embed(backbone, images), expected)
    torch.testing.assert_close(cache.embed(backbone, images.flip(0)), expected.flip(0))
    cache.embed(backbone, torch.cat([images, images[:1] * 0.5]))
    assert calls == [3, 1]

    again = EmbeddingCache(tmp_path)
    torch.testing.assert_close(again.embed(backbone, images), expected)
    assert calls == [3, 1]
    assert not list(tmp_path.glob("*.part"))
    for file in tmp_path.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:100])
    torch.testing.assert_close(EmbeddingCache(tmp_path).embed(backbone, images), expected)
    assert calls == [3, 1, 3]


def test_cache_tells_backbones_apart(small_folder, tmp_path):
    images = torch.rand(1, 3, 48, 48)
    half, full = (
        load_backbone("clip", small_folder, dtype=dtype)
        for dtype in (torch.bfloat16, torch.float32)
    )
    cache = EmbeddingCache()
    assert not torch.equal(cache.embed(half, images), cache.embed(full, images))


def test_names_of_control_tokens_in_a_caption_are_text(small_folder):
    backbone = load_backbone("clip", small_folder)
    end = backbone.tokenizer.eos_token
    texts = [f"a red circle {end} a blue square", "a red circle", ""]
    tokens = backbone._tokenize(texts, 20)["input_ids"]
    assert (tokens[0] == backbone.tokenizer.eos_token_id).nonzero()[0] > (
        tokens[1] != tokens[1, -1]
    ).sum()
    torch.testing.assert_close(backbone.embed_text(texts[1:]), backbone.embed_text(texts)[1:])
    assert (backbone.embed_text(texts)[0] - backbone.embed_text(texts[1:])[0]).abs().max() > 1e-3
