"""Similarity rewards by hand."""

import pytest
import torch
from torch import Tensor, nn

from uae.rewards.reconstruction import CLIPScore, ImageTextReward, ReconstructionReward
from uae.similarity.backbones import Backbone
from uae.similarity.checkpoints import BackboneError, Provenance
from uae.similarity.preprocess import Preprocess

P, G, K = 2, 3, 2
SOURCES, RECONSTRUCTIONS = torch.rand(P, 3, 8, 8), torch.rand(P * G * K, 3, 8, 8)
CAPTIONS = ["dot"] * (P * G)


class MeanColour(nn.Module):
    """In the place of a DINO model: its CLS feature is the image's mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pixel_values: Tensor):
        from types import SimpleNamespace

        return SimpleNamespace(
            last_hidden_state=self.scale * pixel_values.mean(dim=(2, 3))[:, None]
        )


def mean_colour_backbone() -> Backbone:
    preprocess = Preprocess(8, 8, "exact", "bilinear", False, (0.0,) * 3, (1.0,) * 3)
    return Backbone(
        "dinov2", MeanColour(), preprocess, Provenance("dinov2", "test", "none", "float32", {})
    )


def flat(*color: float) -> Tensor:
    return torch.tensor(color, dtype=torch.float32)[:, None, None].expand(3, 8, 8)


def test_reconstruction_reward_by_hand():
    """Mean colours (1,0,0) and (0,0,1) against each group's own reconstructions."""
    sources = torch.stack([flat(1, 0, 0), flat(0, 0, 1)])
    reconstructions = torch.stack(
        [flat(1, 0, 0), flat(0.5, 0.5, 0), flat(0, 0, 0.5), flat(1, 0, 0)]
    )
    reward = ReconstructionReward(mean_colour_backbone())
    values = reward(sources, ["a", "b"], reconstructions)
    torch.testing.assert_close(values, torch.tensor([1.0, 0.5**0.5, 1.0, 0.0]))


def test_sources_are_embedded_once(monkeypatch):
    backbone = mean_colour_backbone()
    calls, embed = [], backbone.embed
    monkeypatch.setattr(
        backbone, "embed", lambda images: calls.append(len(images)) or embed(images)
    )
    reward = ReconstructionReward(backbone)
    for _ in range(2):
        reward(SOURCES, CAPTIONS, RECONSTRUCTIONS)
    assert calls == [P, P * G * K, P * G * K]


def test_reconstruction_reward_has_a_gradient_in_the_reconstruction_only():
    sources, images = SOURCES.clone().requires_grad_(), RECONSTRUCTIONS.clone().requires_grad_()
    ReconstructionReward(mean_colour_backbone())(sources, CAPTIONS, images).sum().backward()
    assert sources.grad is None
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_image_text_reward_by_hand(monkeypatch):
    backbone = mean_colour_backbone()
    with pytest.raises(BackboneError, match="tokenizer"):
        ImageTextReward(backbone)
    backbone.tokenizer = object()
    colours = {"red": [1.0, 0.0, 0.0], "blue": [0.0, 0.0, 1.0]}
    monkeypatch.setattr(
        backbone, "embed_text", lambda texts: torch.tensor([colours[text] for text in texts])
    )
    sources = torch.stack([flat(1, 0, 0), flat(0, 0.6, 0.8)])
    values = ImageTextReward(backbone)(
        sources, ["red", "blue", "red", "blue"], torch.rand(8, 3, 8, 8)
    )
    torch.testing.assert_close(values, torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.8, 0.8]))


def test_clip_score_compares_each_picture_with_its_text(monkeypatch):
    backbone = mean_colour_backbone()
    with pytest.raises(BackboneError, match="tokenizer"):
        CLIPScore(backbone)
    backbone.tokenizer = object()
    colours = {"red": [1.0, 0.0, 0.0], "blue": [0.0, 0.0, 1.0]}
    monkeypatch.setattr(
        backbone, "embed_text", lambda texts: torch.tensor([colours[text] for text in texts])
    )
    pictures = torch.stack([flat(1, 0, 0), flat(0.6, 0.8, 0), flat(1, 0, 0), flat(0, 0.6, 0.8)])
    pictures.requires_grad_()
    values = CLIPScore(backbone)([], ["red", "blue"], pictures)
    torch.testing.assert_close(values, torch.tensor([1.0, 0.6, 0.0, 0.8]))
    (gradient,) = torch.autograd.grad(values[3], pictures)
    assert not gradient[:3].any() and gradient[3].any()
