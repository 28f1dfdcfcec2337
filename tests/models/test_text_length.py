"""A decoder that reads a fixed number of tokens: caps above it are refused, longer texts lose their
ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.rl.tiny_run import build_model, config, reward
from uae.cli import run
from uae.config import CaptionSettings, DecodeSettings
from uae.models.base import check_settings
from uae.models.encoders.tokens import cut_inside
from uae.models.llm_diffusion import LLMDiffusion
from uae.rl.train import train
from uae.world.data import SceneImages
from uae.world.models import TEXT_LENGTH, build_janus

MOST = (
    43  # of 48: the chat template takes <|im_start|> generate … <|im_end|> <|im_start|> assistant
)
PAINT = DecodeSettings(num_steps=1)


@pytest.fixture(scope="module")
def model() -> LLMDiffusion:
    return build_model().eval()


def words(number: int) -> str:
    return " ".join((["red", "blue", "green", "circle"] * number)[:number])


def test_cutting_by_hand():
    empty = [1, 2, 8, 9]  # two tokens before the text, two after it
    assert cut_inside([1, 2, 5, 6, 7, 8, 9], empty, None) == [1, 2, 5, 6, 7, 8, 9]
    assert cut_inside([1, 2, 5, 6, 7, 8, 9], empty, 7) == [1, 2, 5, 6, 7, 8, 9]
    assert cut_inside([1, 2, 5, 6, 7, 8, 9], empty, 5) == [1, 2, 5, 8, 9]
    assert cut_inside([1, 2, 5, 6, 7, 8, 9], empty, 4) == empty
    assert cut_inside([1, 2, 8, 9, 8, 9, 8, 9], empty, 6) == [
        1,
        2,
        8,
        9,
        8,
        9,
    ]  # a text of the template's tokens


@pytest.mark.parametrize(
    ("conditioning", "most", "around"), [("text", MOST, 5), ("hidden", TEXT_LENGTH, 0)]
)
def test_the_largest_cap_is_named_and_works(
    model: LLMDiffusion, conditioning, most: int, around: int
):
    model.conditioning = conditioning
    try:
        message = (
            f"captioning.max-new-tokens: expected at most {most}, got {most + 1}: .* 48 tokens, "
            f"{around} of them"
        )
        with pytest.raises(ValueError, match=message):
            check_settings(model, CaptionSettings(max_new_tokens=most + 1), PAINT)
        longest = CaptionSettings(max_new_tokens=most)
        check_settings(model, longest, PAINT)
        captions = model.caption(SceneImages().batch(0, 2), longest, group_size=4)
        assert (
            captions.rollout.mask.shape[1] == most and captions.truncated.any()
        )  # untrained: some never end
        painted = model.reconstruct(captions, PAINT)
        assert len(painted.images) == 8
        assert painted.metrics == ({"image/text_cut_frac": 0.0} if conditioning == "text" else {})
    finally:
        model.conditioning = "text"


def test_a_longer_text_is_painted_without_its_end_and_counted(model: LLMDiffusion):
    texts = ["a red circle", words(MOST), words(MOST + 1), words(500), ""]
    assert model.too_long(texts) == [2, 3]
    states, mask = model.text_states(texts)
    assert mask.sum(1).tolist() == [8, 48, 48, 48, 5]
    assert torch.equal(states[1], states[2]) and torch.equal(states[1], states[3])
    painted = model.generate(texts, PAINT, seed=1)
    assert painted.metrics == {"image/text_cut_frac": 0.4}
    captions = model.caption(
        SceneImages().batch(0, 2), CaptionSettings(max_new_tokens=2), group_size=2
    )
    captions.texts[:] = [
        words(44),
        "red",
        "red",
        "red",
    ]  # as a tokenizer may write the very tokens with more
    for settings in (PAINT, DecodeSettings(2, sampler="sde")):
        assert model.reconstruct(captions, settings).metrics == {"image/text_cut_frac": 0.25}


def test_a_decoder_without_a_fixed_length_reads_all(model: LLMDiffusion):
    model.decoder.text_length = None
    try:
        check_settings(model, CaptionSettings(max_new_tokens=4096), PAINT)
        assert model.too_long([words(500)]) == []
        assert model.generate([words(100)], PAINT).metrics == {}
        assert model.text_states([words(100)])[1].sum() == 105
    finally:
        model.decoder.text_length = TEXT_LENGTH


def test_sizes_that_no_picture_has_are_refused(model: LLMDiffusion):
    for size in ({"height": 50}, {"width": 96}):
        with pytest.raises(
            ValueError, match="expected height and width in multiples of 8 up to 48"
        ):
            check_settings(model, CaptionSettings(), DecodeSettings(**size))
    janus = build_janus()
    check_settings(janus, CaptionSettings(max_new_tokens=500), DecodeSettings())
    with pytest.raises(ValueError, match="paints 48x48 pixels, got 64x48"):
        check_settings(janus, CaptionSettings(), DecodeSettings(height=64))
    with pytest.raises(ValueError, match=r"decoding\.temperature: at 0 image tokens are not drawn"):
        janus.begin_training(0, captions=True, decoding=DecodeSettings(temperature=0.0))


def test_training_is_refused_before_anything_is_written(tmp_path: Path):
    settings = config(2, captioning=CaptionSettings(max_new_tokens=64))
    with pytest.raises(ValueError, match="at most 43"):
        train(build_model(), reward(), SceneImages(), settings, tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"a red circle\n{words(500)}\na blue square\n")
    out = tmp_path / "out"
    run(
        [
            "generate",
            str(prompts),
            "--out",
            str(out),
            "--images-per-prompt",
            "1",
            "--decoding.num-steps",
            "1",
        ]
    )
    assert len(list(out.glob("*/samples/*.png"))) == 3
    shown = capsys.readouterr().err
    assert "prompt 1 is longer than the decoder reads" in shown and shown.count("is longer") == 1
    picture = next(out.glob("00000/samples/*.png"))
    for arguments in (
        [
            "reconstruct",
            str(picture),
            "--out",
            str(tmp_path / "recon"),
            "--captioning.max-new-tokens",
            "64",
        ],
        [
            "train",
            "tiny",
            "--run-dir",
            str(tmp_path / "run"),
            "--train.captioning.max-new-tokens",
            "64",
        ],
    ):
        with pytest.raises(SystemExit) as stopped:
            run(arguments)
        assert stopped.value.code == 2
        assert "captioning.max-new-tokens: expected at most 43" in capsys.readouterr().err
