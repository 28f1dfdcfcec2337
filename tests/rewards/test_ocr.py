"""The OCR reward, with the engine itself: it reads rendered letters, and likeness is the edit
distance."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from uae.rewards.build import check_rewards
from uae.rewards.ocr import ocr, read_letters, text_likeness
from uae.world.scene import Scene, Word, render_batch


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("", "", 1.0),
        ("open", "", 0.0),
        ("open", "open", 1.0),
        ("open", "pen", 0.75),
        ("kitten", "sitting", 1 - 3 / 7),
    ],
)
def test_likeness_is_one_minus_edits_over_length(a: str, b: str, expected: float):
    assert text_likeness(a, b) == text_likeness(b, a) == pytest.approx(expected)


def sign(text: str, side: int = 256) -> torch.Tensor:
    image = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).text((20, 100), text, fill="black", font=ImageFont.load_default(44))
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .view(side, side, 3)
        .permute(2, 0, 1)
        / 255
    )


def test_text_in_both_pictures_is_compared():
    assert read_letters(sign("OPEN 24")) == "open24"
    sources, images = (
        [sign("OPEN"), sign("")],
        torch.stack([sign("OPEN"), sign("OPEL"), sign(""), sign("SALE")]),
    )
    torch.testing.assert_close(ocr(sources, ["", ""], images), torch.tensor([1.0, 0.75, 1.0, 0.0]))


def test_words_of_the_world_are_read():
    scenes = [Scene("white", (), Word(4, word)) for word in ("milk", "star")]
    assert [read_letters(image) for image in torch.from_numpy(render_batch(scenes))] == [
        "milk",
        "star",
    ]


def test_a_missing_engine_is_said_before_any_work(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "rapidocr" else find_spec(name, *a),
    )
    with pytest.raises(
        ValueError, match=r"expected the package rapidocr.*unified-autoencoder\[ocr\]"
    ):
        check_rewards({"ocr": 1.0}, None)


def test_words_that_a_prompt_quotes_are_looked_for():
    images = torch.stack([sign("OPEN"), sign("OPEL"), sign(""), sign("SALE")])
    prompts = ['a sign that says "Open"', "an empty sign"]
    torch.testing.assert_close(ocr([], prompts, images), torch.tensor([1.0, 0.75, 1.0, 0.0]))
    (value,) = ocr([], ["the words “op” and “en”"], images[:1])
    assert value == 1
