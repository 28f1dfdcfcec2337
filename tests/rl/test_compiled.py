"""A decoder that runs by compiled code while it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

from tests.rl.tiny_run import build_model, config, reward
from uae.models.decoders.learner import TransformerLearner
from uae.rl import updates
from uae.rl.train import train
from uae.rl.updates import check_update
from uae.utils.device import can_compile
from uae.utils.metrics import read_metrics
from uae.world.data import SceneImages
from uae.world.models import build_janus


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch of each pass through code that was to be compiled; nothing is."""
    passes: list[int] = []

    def compiled(forward, dynamic):
        assert dynamic

        def run(*args, **kwargs):
            passes.append(len(kwargs["hidden_states"]))
            return forward(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(updates, "can_compile", lambda: True)
    return passes


def test_it_is_used_in_training_and_no_longer(tmp_path: Path, recorded: list[int]):
    model, given = build_model(), config(1, compile_decoder=True)
    train(model, reward(), SceneImages(), given, tmp_path / "run", {})
    assert recorded and "forward" not in vars(model.decoder.transformer)
    plain = build_model()
    train(plain, reward(), SceneImages(), config(1), tmp_path / "plain", {})
    names = ("reward/total", "rl/loss", "rl/grad_norm")
    (one,), (other,) = (read_metrics(tmp_path / n / "metrics.jsonl") for n in ("run", "plain"))
    assert [one[name] for name in names] == [other[name] for name in names]


def test_a_forward_of_the_models_own_is_put_back(recorded: list[int]):
    transformer = build_model().decoder.transformer
    wrapped = transformer.forward = lambda *args, **kwargs: None
    decoder = build_model().decoder
    decoder.transformer = transformer
    with pytest.raises(KeyError), decoder.compiled():
        raise KeyError
    assert transformer.forward is wrapped


def test_where_nothing_can_be_compiled_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    given = config(1, compile_decoder=True)
    with pytest.raises(ValueError, match=r"^compile-decoder: expected a decoder with a network"):
        check_update(build_janus(), given)
    monkeypatch.setattr(updates, "can_compile", lambda: False)
    with pytest.raises(ValueError, match=r"^compile-decoder: expected a C\+\+ compiler"):
        check_update(build_model(), given)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
def test_compiled_code_computes_the_same_of_any_batch_and_length():
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        pos_embed_max_size=2,
    )
    decoder = TransformerLearner(transformer)
    for batch, length in ((2, 3), (4, 5)):
        inputs = {
            "hidden_states": torch.randn(batch, 4, 4, 4),
            "encoder_hidden_states": torch.randn(batch, length, 8),
            "pooled_projections": torch.randn(batch, 8),
            "timestep": torch.rand(batch) * 1000,
        }
        plain = transformer(**inputs, return_dict=False)[0]
        with decoder.compiled():
            compiled = transformer(**inputs, return_dict=False)[0]
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
