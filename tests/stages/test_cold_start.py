"""The semantic reconstruction loss: it paints as the model paints, and its gradient is exact and
cheap to keep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.rl.tiny_run import build_model, likeness
from uae.config import CaptionSettings, DecodeSettings
from uae.models.load import load_model
from uae.rewards.base import WeightedSum
from uae.stages import cold_start
from uae.stages.cold_start import ColdStartConfig, ColdStartTask, paint_differentiably
from uae.stages.fit import fit
from uae.world.data import SceneImages
from uae.world.models import build_janus

TEXTS = ["a red circle", "a small blue square on a white background"]
CONFIG = ColdStartConfig(
    num_steps=4,
    images_per_step=2,
    learning_rate=3e-3,
    warmup_steps=1,
    captioning=CaptionSettings(max_new_tokens=4),
    decoding=DecodeSettings(num_steps=2),
    use_bf16=False,
)


def similar(sources, captions, reconstructions):
    return 1 + likeness(sources, captions, reconstructions)


def task(config: ColdStartConfig = CONFIG) -> ColdStartTask:
    return ColdStartTask(
        build_model(), WeightedSum({"likeness": (1.0, similar)}), SceneImages(), config
    )


def gradient(started: ColdStartTask, decoding: DecodeSettings) -> torch.Tensor:
    painted = paint_differentiably(started.model, TEXTS, decoding)
    painted.square().mean().backward()
    grads = [
        p.grad
        for module in started.modules.values()
        for p in module.parameters()
        if p.grad is not None
    ]
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("text_length", [48, None])
def test_it_paints_what_the_model_paints(guidance_scale: float, text_length: int | None):
    model = build_model()
    model.decoder.text_length = text_length
    decoding = DecodeSettings(num_steps=3, guidance_scale=guidance_scale)
    expected = model.generate(TEXTS, decoding, seed=3, step=5).images
    torch.testing.assert_close(
        paint_differentiably(model, TEXTS, decoding, seed=3, step=5), expected
    )


def test_the_gradient_is_that_of_kept_activations(monkeypatch):
    decoding = DecodeSettings(num_steps=3)
    recomputed = gradient(task(), decoding)
    monkeypatch.setattr(cold_start, "_recomputed", lambda function: function)
    torch.testing.assert_close(recomputed, gradient(task(), decoding), atol=1e-7, rtol=1e-4)
    assert recomputed.norm() > 0


def test_what_is_kept_hardly_grows_with_the_steps():
    kept = []
    for num_steps in (2, 8):
        num_bytes = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal num_bytes
            num_bytes += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            paint_differentiably(task().model, TEXTS, DecodeSettings(num_steps=num_steps))
        kept.append(num_bytes)
    latents = 2 * 4 * 12 * 12 * 4  # bytes of two images' latents
    assert (
        kept[1] - kept[0] < 6 * 20 * latents
    )  # one step's activations are thousands of times that


def test_decoder_and_projector_learn_and_nothing_else(tmp_path: Path):
    started = task()
    before = {name: p.clone() for name, p in started.model.named_parameters()}
    start = started.evaluate()["semantic_loss"]
    end = fit(started, tmp_path / "run")["semantic_loss"]
    assert end < start - 1e-3
    moved = {
        name.split(".")[1]
        for name, p in started.model.named_parameters()
        if not torch.equal(p, before[name])
    }
    assert moved == {"transformer", "projector"}
    load_model(str(tmp_path / "run" / "export"))


def test_lora_leaves_the_transformer_as_it_was():
    started = task(ColdStartConfig(**{**CONFIG.__dict__, "lora_rank": 2}))
    learning = {
        name for name, p in started.model.decoder.transformer.named_parameters() if p.requires_grad
    }
    assert learning and all("lora_" in name for name in learning)


def test_a_reward_without_gradient_is_refused():
    with pytest.raises(ValueError, match=r"expected rewards with a gradient.*got objects"):
        ColdStartConfig(rewards={"ssim": 1.0, "objects": 1.0, "ocr": 0.0})


def test_image_tokens_have_no_gradient():
    with pytest.raises(ValueError, match="expected a model that paints by diffusion"):
        ColdStartTask(
            build_janus(), WeightedSum({"likeness": (1.0, similar)}), SceneImages(), CONFIG
        )
