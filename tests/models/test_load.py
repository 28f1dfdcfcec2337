"""Where a model is: two checkpoints joined by a plus, folders with a plus in their names, and what
is not there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.real_layouts import (
    large_like_transformer,
    large_like_vae,
    write_janus,
    write_qwen,
    write_sd3,
)
from uae.models.janus import Janus
from uae.models.llm_diffusion import LLMDiffusion
from uae.models.load import SHIPPED, load_model, load_to_train, split_pair

QWEN, SD3 = "Qwen/Qwen2.5-VL-3B-Instruct", "stabilityai/stable-diffusion-3.5-large"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder and a decoder, a Janus and a model of ours, all in folders with a plus in their
    names."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("a+b")
    write_qwen(root / "enc+oder")
    write_sd3(root / "de+co+der", large_like_transformer(), large_like_vae())
    write_janus(root / "janus+pro")
    shutil.copytree(SHIPPED["tiny"], root / "+tiny+")
    return root


def test_a_plus_in_names_of_folders(checkpoints: Path, monkeypatch: pytest.MonkeyPatch):
    encoder, decoder = checkpoints / "enc+oder", checkpoints / "de+co+der"
    model = load_model(f"{encoder}+{decoder}")
    assert isinstance(model, LLMDiffusion)
    assert model.encoder.model.config.text_config.hidden_size == 64 and model.decoder.noise_shape(
        64, 64
    ) == (16, 8, 8)
    assert isinstance(load_model(str(checkpoints / "janus+pro")), Janus)
    assert isinstance(load_model(f"{checkpoints / '+tiny+'}/"), LLMDiffusion)
    monkeypatch.chdir(checkpoints)
    assert isinstance(load_model("+tiny+"), LLMDiffusion)
    assert isinstance(load_model("./janus+pro/"), Janus)
    monkeypatch.setenv("HOME", str(checkpoints))
    assert isinstance(load_model("~/enc+oder/+~/de+co+der/"), LLMDiffusion)
    assert isinstance(load_model("~/+tiny+"), LLMDiffusion)


@pytest.mark.parametrize(
    ("source", "pair"),
    [
        (f"{QWEN}+{SD3}", (QWEN, SD3)),
        (f"{QWEN}@main+{SD3}@abc", (f"{QWEN}@main", f"{SD3}@abc")),
        (f"enc+oder+{SD3}", ("enc+oder", SD3)),
        (f"./enc+oder+{SD3}", ("./enc+oder", SD3)),
        (f"{QWEN}+de+co+der/", (QWEN, "de+co+der/")),
        ("enc+oder+de+co+der", ("enc+oder", "de+co+der")),
        ("enc+oder/+./de+co+der", ("enc+oder/", "./de+co+der")),
        ("enc+oder", None),
        ("tiny", None),
        (QWEN, None),
        (f"{QWEN}+gone", (QWEN, "gone")),  # the one reading there is: the loader says what is gone
    ],
)
def test_the_reading_in_which_both_sides_are_there(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, source: str, pair: tuple[str, str] | None
):
    monkeypatch.chdir(checkpoints)
    assert split_pair(source) == pair


def test_two_readings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b+c", "a+b", "c"):
        Path(name).mkdir()
    with pytest.raises(
        ValueError, match=re.escape("may be 'a' and 'b+c' or 'a+b' and 'c'; rename one")
    ):
        load_model("a+b+c")


def test_no_reading_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape("which is not 'a' and 'b+c' or 'a+b' and 'c'")):
        load_model("a+b+c")
    with pytest.raises(
        ValueError, match="decoder b is neither a folder here nor in the local cache"
    ):
        load_model("a+b")


@pytest.mark.parametrize(
    "source",
    [
        "no/such-model",
        "no such model",
        "a/b/c",
        "./gone",
        "/gone",
        f"{QWEN}+no/such",
        "no/such+{sd3}",
        "",
        "tiny2",
    ],
)
def test_what_is_not_there_is_said_in_one_line(checkpoints: Path, source: str):
    with pytest.raises(ValueError, match=r"expected|neither a folder") as error:
        load_model(source.format(sd3=checkpoints / "de+co+der"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_folder_of_another_model_is_said(checkpoints: Path, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"got '.*enc\+oder' \(its config\.json is of qwen2_5_vl\)"
    ):
        load_model(str(checkpoints / "enc+oder"))
    with pytest.raises(ValueError, match=r"it has no config\.json that says a model_type"):
        load_model(str(tmp_path))
    with pytest.raises(ValueError, match="are missing"):
        load_model(f"{checkpoints / 'janus+pro'}+{checkpoints / 'de+co+der'}")


@pytest.mark.parametrize(
    ("name", "former", "known"),
    [("tiny", "llm_diffusion", "umm1"), ("tiny-ar", "autoregressive", "umm2")],
)
def test_folders_with_a_familys_former_name_load_and_are_saved_by_the_new_one(
    tmp_path: Path, name: str, former: str, known: str
):
    shutil.copytree(SHIPPED[name], tmp_path / "old")
    description = json.loads((tmp_path / "old" / "uae.json").read_text())
    assert description["family"] == known
    (tmp_path / "old" / "uae.json").write_text(json.dumps(description | {"family": former}))
    model: Any = load_model(str(tmp_path / "old"))
    assert model.family == known
    model.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "uae.json").read_text())["family"] == known


def dtypes(model: Any) -> tuple[torch.dtype, ...]:
    """Of the language model, the transformer and the projector."""
    decoder = model.decoder
    return model.encoder.model.dtype, decoder.transformer.dtype, decoder.projector.dtype


def test_one_rule_says_in_which_dtype_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As each part is stored; fp32 where a model is small, or learns fully."""
    bf16, fp32 = torch.bfloat16, torch.float32
    shutil.copytree(SHIPPED["tiny"], tmp_path / "copy")
    for source in ("tiny", str(tmp_path / "copy")):
        assert dtypes(load_model(source)) == (fp32, fp32, fp32)
    monkeypatch.setattr("uae.models.load.SMALL_BYTES", 0)
    for source in ("tiny", str(tmp_path / "copy")):
        assert dtypes(load_model(source)) == (bf16, bf16, bf16)
        assert dtypes(load_to_train(source, 2)) == (bf16, bf16, bf16)
        assert dtypes(load_to_train(source, 0)) == (fp32, fp32, fp32)

    model: Any = load_to_train("tiny", 2)
    model.begin_training(2, captions=True, decoding=None)
    model.decoder.projector.float()  # as a stage does where it learns
    with torch.no_grad():
        model.decoder.projector.layers[0].bias.add_(1e-5)
    model.save_pretrained(tmp_path / "adapted")
    assert dtypes(load_model(str(tmp_path / "adapted"))) == (bf16, bf16, fp32)
    assert dtypes(load_model(str(tmp_path / "adapted"), bf16)) == (bf16, bf16, bf16)
    monkeypatch.undo()
    assert dtypes(load_model(str(tmp_path / "adapted"))) == (fp32, fp32, fp32)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_early_captioner_lies_on_tiny_which_goes_on_encoding_texts(rank: int, tmp_path: Path):
    tiny, early = load_model("tiny"), load_to_train("tiny-early", rank)
    assert isinstance(tiny, LLMDiffusion) and isinstance(early, LLMDiffusion)
    texts = ["a red circle", "a small blue ring"]
    expected, _ = tiny.text_states(texts)
    assert torch.equal(early.text_states(texts)[0], expected)
    assert not torch.equal(early.encoder.text_states(texts)[0], expected)
    for name, weight in tiny.decoder.named_parameters():
        assert torch.equal(early.decoder.get_parameter(name), weight)
    early.begin_training(rank, captions=True, decoding=None)
    with torch.no_grad():
        for p in early.encoder.named_trainable_parameters().values():
            p += 0.01
    early.save_pretrained(tmp_path / "model")
    again = load_model(str(tmp_path / "model"))
    assert isinstance(again, LLMDiffusion) and again.captioning == early.captioning
    assert torch.equal(again.text_states(texts)[0], expected)
    learnt = early.encoder.text_states(texts)[0]
    assert torch.equal(again.encoder.text_states(texts)[0], learnt)
    assert not torch.equal(learnt, load_model("tiny-early").encoder.text_states(texts)[0])
    (base,) = json.loads((tmp_path / "model/uae.json").read_text())["base"]
    assert base["source"] == "tiny-early"
