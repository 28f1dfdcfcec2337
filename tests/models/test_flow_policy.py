"""UMM-1's decoder as a policy over denoising steps: on policy, held to its reference, saved as the
library loads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from tests.models.test_sd3 import LLM_WIDTH, small_decoder
from uae.config import DecodeSettings
from uae.models.decoders.sd3 import SD3Decoder
from uae.types import Policy, Rollout

SDE = DecodeSettings(num_steps=4, sampler="sde", height=16, width=16, micro_batch=3)
HOWS = {
    "sde": SDE,
    "cps": replace(SDE, sampler="cps"),
    "window": replace(SDE, window_start=1, window_size=2),
    "guided": replace(SDE, guidance_scale=3.0),
}


def texts(seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Four texts of 3, 5, 5 and 7 tokens."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(7)[None] < torch.tensor([3, 5, 5, 7])[:, None]
    return torch.randn(4, 7, LLM_WIDTH, generator=generator), mask


def sample(
    decoder: SD3Decoder, settings: DecodeSettings, per_text: int = 2
) -> tuple[torch.Tensor, Rollout]:
    states, mask = texts()
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(4 * per_text, 4, 8, 8, generator=generator)
    draws = torch.randn(4 * per_text, settings.num_steps, 4, 8, 8, generator=generator)
    negative = texts(3)[0][:1, :5] if settings.guidance_scale != 1 else None
    return decoder.sample(states, mask, noise, draws.__getitem__, settings, negative)


def disturb(decoder: SD3Decoder, scale: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in decoder.named_trainable_parameters().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_what_was_sampled_is_scored_the_same(how: str, lora_rank: int):
    decoder = small_decoder().requires_grad_(False)
    decoder.learn(lora_rank)
    _, rollout = sample(decoder, HOWS[how])
    num_random = {"sde": 4, "cps": 3, "window": 2, "guided": 4}[how]
    assert rollout.mask.shape == (8, num_random) and rollout.actions.shape[1] == num_random + 1
    assert rollout.actions.dtype == rollout.log_probs.dtype == torch.float32
    scored = decoder.evaluate(rollout, with_kl=True)
    torch.testing.assert_close(scored.log_probs, rollout.log_probs, atol=1e-5, rtol=1e-5)
    assert scored.kl is not None and scored.kl.abs().max() < 1e-8
    part = torch.tensor([6, 1, 3])
    alone = decoder.evaluate(rollout.select(part), with_kl=False).log_probs
    torch.testing.assert_close(alone, rollout.log_probs[part], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_gradients_reach_the_transformer_alone_and_raise_the_probability(lora_rank: int):
    decoder = small_decoder().requires_grad_(False)
    decoder.learn(lora_rank)
    disturb(decoder)
    _, rollout = sample(decoder, SDE)
    before = decoder.evaluate(rollout, with_kl=True)
    assert before.kl is not None and before.kl.min() > 0
    before.log_probs.mean().backward()
    learning = decoder.named_trainable_parameters()
    assert {name for name, p in decoder.named_parameters() if p.grad is not None} <= {
        f"transformer.{name}" for name in learning
    }
    with torch.no_grad():
        for parameter in learning.values():
            if parameter.grad is not None:
                parameter.add_(1e-3 * parameter.grad)
        assert decoder.evaluate(rollout, with_kl=False).log_probs.mean() > before.log_probs.mean()


def test_steps_run_again_in_the_backward_pass_give_the_same_gradient(
    monkeypatch: pytest.MonkeyPatch,
):
    decoder = small_decoder().requires_grad_(False)
    decoder.learn(0)
    _, rollout = sample(decoder, HOWS["guided"])
    gradients = []
    for kept in (0, 100):
        monkeypatch.setattr("uae.diffusion.policy.KEPT_STEPS", kept)
        decoder.evaluate(rollout, with_kl=False).log_probs.sum().backward()
        parameter = decoder.transformer.proj_out.weight
        gradients.append(parameter.grad.clone())
        decoder.zero_grad(set_to_none=True)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_the_two_forms_of_the_kl_differ_by_the_steps_length():
    decoder = small_decoder().requires_grad_(False)
    decoder.learn(0)
    _, rollout = sample(decoder, SDE)
    disturb(decoder)
    published = decoder.evaluate(rollout, with_kl=True).kl
    rollout.context = replace(rollout.context, kl_form="exact")
    exact = decoder.evaluate(rollout, with_kl=True).kl
    assert published is not None and exact is not None
    lengths = -rollout.context.sigmas.diff()
    torch.testing.assert_close(exact * lengths, published, atol=1e-6, rtol=1e-4)


def test_with_almost_no_noise_it_paints_what_the_ode_does():
    decoder = small_decoder()
    images, _ = sample(decoder, replace(SDE, noise_level=1e-5))
    states, mask = texts()
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = decoder.generate(states, mask, noise, SDE.num_steps)
    torch.testing.assert_close(images, wanted, atol=1e-3, rtol=0)


def test_no_random_step_is_refused():
    with pytest.raises(ValueError, match="noise-level: expected above 0"):
        sample(small_decoder(), replace(SDE, noise_level=0.0))


def test_lora_is_saved_unmerged(tmp_path: Path):
    decoder = small_decoder().requires_grad_(False)
    states, mask = texts()
    noise = torch.randn(4, 4, 8, 8)
    assert isinstance(decoder, Policy) and not decoder.named_trainable_parameters()
    decoder.learn(2)
    disturb(decoder, 0.2)
    with torch.no_grad():
        wanted = decoder.generate(states, mask, noise, 2)
        with decoder.reference():
            before = decoder.generate(states, mask, noise, 2)
    assert (wanted - before).abs().max() > 1e-3
    decoder.save_pretrained(tmp_path)
    base = SD3Transformer2DModel.from_pretrained(
        tmp_path / "transformer"
    )  # the library alone, nothing missing
    for name, weight in decoder.adapters.without().state_dict().items():
        assert torch.equal(base.state_dict()[name], weight), name  # type: ignore[union-attr]
    with torch.no_grad():
        again = SD3Decoder.from_pretrained(tmp_path).generate(states, mask, noise, 2)
    torch.testing.assert_close(again, wanted, atol=1e-6, rtol=0)
