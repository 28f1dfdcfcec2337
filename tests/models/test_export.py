"""Merging: what the libraries load is what was trained, as far as the dtype holds it, and how far
is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import JanusForConditionalGeneration, Qwen2_5_VLForConditionalGeneration

from uae.cli import run
from uae.config import DecodeSettings
from uae.models.export import export, survival
from uae.models.load import load_model

SDE = DecodeSettings(sampler="sde", num_steps=2)


def trained(source: str, rank: int, scale: float, folder: Path) -> Any:
    """Every weight that learns, moved by about ``scale``."""
    model: Any = load_model(source, torch.float32)
    model.begin_training(
        rank, captions=True, decoding=SDE if source == "tiny" else DecodeSettings()
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for half in (model.encoder, model.decoder):
            for name, parameter in half.named_trainable_parameters().items():
                if "lora_A" not in name:
                    parameter.add_(scale * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def test_survival_by_hand():
    """A weight that moves by two steps of bf16 keeps all of it, one that moves by a tenth keeps
    nothing."""
    step = 2**-7  # of bf16 at 1
    base = {
        "a.large": torch.ones(4),
        "a.small": torch.ones(2),
        "b.same": torch.ones(3),
        "c.new": torch.ones(1),
    }
    moved = {
        "a.large": base["a.large"] + 2 * step,
        "a.small": base["a.small"] + step / 10,
        "b.same": torch.ones(3),
    }
    found = survival(moved, base, torch.bfloat16)
    large, small = 4 * (2 * step) ** 2, 2 * (step / 10) ** 2
    assert found.keys() == {"a"} and found["a"].num_moved == 6
    assert found["a"].share == pytest.approx(large / (large + small))
    assert survival(moved, base, torch.float32)["a"].share == 1


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("source", ["tiny", "tiny-ar"])
def test_what_is_exported_is_what_was_trained(source: str, rank: int, tmp_path: Path):
    model = trained(source, rank, 1e-2, tmp_path / "model")
    found = export(str(tmp_path / "model"), tmp_path / "out", torch.float32)
    assert found and all(part.share == pytest.approx(1, abs=1e-6) for part in found.values())
    assert found.keys() == ({"encoder", "decoder"} if source == "tiny" else {"model"})
    library, folder = Qwen2_5_VLForConditionalGeneration, tmp_path / "out" / "encoder"
    if source == "tiny-ar":
        library, folder = JanusForConditionalGeneration, tmp_path / "out"
    model.merge_adapters()
    wanted = model.encoder.model.state_dict()
    for name, weight in library.from_pretrained(folder, dtype=torch.float32).state_dict().items():
        torch.testing.assert_close(weight, wanted[name], atol=1e-7, rtol=0)
    assert not list((tmp_path / "out").rglob("adapter_config.json"))


def test_small_updates_are_lost_in_bf16_and_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trained("tiny-ar", 2, 1e-6, tmp_path / "model")
    run(["export", str(tmp_path / "model"), str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert "warning: bf16 keeps" in shown.err and "--dtype fp32" in shown.err
    found = export(str(tmp_path / "model"), tmp_path / "again", torch.bfloat16)
    assert found and found["model"].share < 0.2
    run(["export", str(tmp_path / "model"), str(tmp_path / "exact"), "--dtype", "fp32"])
    shown = capsys.readouterr()
    assert "100.0 %" in shown.out and "warning" not in shown.err


def test_a_reference_that_encodes_texts_is_exported_too(tmp_path: Path):
    model: Any = load_model("tiny")
    model.text_encoder = "reference"
    model.begin_training(2, captions=True, decoding=None)
    with torch.no_grad():
        for parameter in model.encoder.named_trainable_parameters().values():
            parameter.add_(0.05)
        wanted = model.text_states(["a red circle"])[0]
    model.save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), tmp_path / "out", torch.float32)
    with torch.no_grad():
        got = load_model(str(tmp_path / "out")).text_states(["a red circle"])[0]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_a_folder_that_holds_something_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(SystemExit):
        run(["export", "tiny", str(tmp_path / "mine")])
    assert (
        "mine is not empty" in capsys.readouterr().err
        and (tmp_path / "mine" / "thesis.tex").exists()
    )
