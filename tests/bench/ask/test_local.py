"""Answers of models on this machine: the batched path against the model's own calls, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from uae.bench.ask.api import Question, TokenAsker
from uae.bench.ask.build import AskerOptions, local_asker
from uae.bench.ask.local import LocalAsker, batches
from uae.images.read import read_image
from uae.models.load import load_model

TEXTS = ["Describe this image.", "A red circle is left of it?", "What?", "user system"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.models.real_layouts import write_janus

    return write_janus(tmp_path_factory.mktemp("model") / "janus")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    files = [folder / f"{i}.png" for i in range(4)]
    for file in files:
        cells = generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(cells).save(file)
    return files


def inputs_of(asker: LocalAsker, text: str, files: list[Path]) -> tuple[Any, Any, Any]:
    """Of one question alone, by the processor's own template."""
    model, processor = asker._loaded
    images = [{"type": "image", "image": Image.open(file).convert("RGB")} for file in files]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [*images, {"type": "text", "text": text}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return model, processor, inputs.to(model.dtype)


def test_greedy_answers_are_those_of_the_model_alone(folder: Path, photos: list[Path]):
    asker = LocalAsker(str(folder), batch_size=3)
    assert isinstance(asker, TokenAsker)
    asker._loaded[0].float()
    questions = [Question(t, (file,)) for t, file in zip(TEXTS, photos, strict=True)]
    replies = dict(asker.ask(questions, 6))
    for place, (text, file) in enumerate(zip(TEXTS, photos, strict=True)):
        model, processor, inputs = inputs_of(asker, text, [file])
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
        num_prompt = inputs["input_ids"].shape[1]
        answer = tokens[num_prompt:].tolist()
        assert replies[place].text == processor.decode(answer, skip_special_tokens=True).strip()
        assert replies[place].tokens_in == num_prompt
        assert replies[place].is_cut == (model.generation_config.eos_token_id not in answer)


def test_questions_about_several_images_go_together(folder: Path, photos: list[Path]):
    """As judges ask: the original and two pictures."""
    asker = LocalAsker(str(folder), batch_size=2)
    asker._loaded[0].float()
    questions = [Question(TEXTS[0], tuple(photos[:3])), Question(TEXTS[1], tuple(photos[1:]))]
    replies = dict(asker.ask(questions, 5))
    for place, question in enumerate(questions):
        model, processor, inputs = inputs_of(asker, question.text, list(question.images))
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0]
        answer = tokens[inputs["input_ids"].shape[1] :].tolist()
        assert replies[place].text == processor.decode(answer, skip_special_tokens=True).strip()


def test_first_tokens_are_the_softmax_of_the_first_logits(folder: Path, photos: list[Path]):
    asker = LocalAsker(str(folder), batch_size=4)
    asker._loaded[0].float()  # it is stored in bf16, which rounds a batch otherwise
    questions = [Question(t, (file,)) for t, file in zip(TEXTS, photos, strict=True)]
    forms = ["red", " blue", "A", "Describe this"]
    found = dict(asker.first_tokens(questions, [forms] * 4))
    for place, (text, file) in enumerate(zip(TEXTS, photos, strict=True)):
        model, processor, inputs = inputs_of(asker, text, [file])
        with torch.inference_mode():
            row = model(**inputs).logits[0, -1].float().softmax(-1)
        ids = [processor.tokenizer.encode(form, add_special_tokens=False)[0] for form in forms]
        assert found[place] == pytest.approx(row[ids].tolist(), rel=1e-4)


def test_a_bad_file_or_text_costs_its_own_question_only(folder: Path, photos: list[Path]):
    asker = LocalAsker(str(folder))
    (photos[0].parent / "bad.png").write_text("no")
    token = next(iter(asker._loaded[1].tokenizer.get_added_vocab()))
    questions = [
        Question("a", (photos[0].parent / "bad.png",)),
        Question(f"what is {token}", (photos[0],)),
        Question("a", (photos[0],)),
    ]
    replies = dict(asker.ask(questions, 2))
    assert "bad.png" in (replies[0].problem or "") and "control tokens" in (
        replies[1].problem or ""
    )
    assert replies[2].text is not None
    assert dict(asker.first_tokens(questions, [["a"]] * 3))[0] == replies[0].problem


def test_a_later_attempt_is_drawn_and_the_same_in_any_company(folder: Path, photos: list[Path]):
    asker = LocalAsker(str(folder))
    again = Question(TEXTS[0], (photos[0],), attempt=1)
    (alone,) = (reply.text for _, reply in asker.ask([again], 8))
    company = dict(asker.ask([Question(TEXTS[1], (photos[1],), attempt=1), again], 8))
    assert company[1].text == alone
    (greedy,) = (reply.text for _, reply in asker.ask([Question(TEXTS[0], (photos[0],))], 8))
    assert greedy != alone


def test_batches_hold_questions_of_one_kind():
    image = Path("x.png")
    images = [(image,), (), (image,), (image, image), (image,), (image,)]
    questions = [Question(str(i), each) for i, each in enumerate(images)]
    questions[5] = Question("5", (image,), attempt=1)
    assert list(batches(questions, 2)) == [[1], [0, 2], [4], [5], [3]]


# --- models of ours ------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["tiny", "tiny-ar"])
def test_the_tiny_models_answer_as_they_do(source: str, photos: list[Path]):
    asker = AskerOptions(model=source, batch_size=3).build()
    assert isinstance(asker, TokenAsker) and asker.settings["source"] == source
    model = load_model(source)
    texts = ["what color is the circle?", "how many objects?", "is there a word?", "what color?"]
    questions = [Question(t, (file,)) for t, file in zip(texts, photos, strict=True)]
    replies = dict(asker.ask(questions, 4))
    for place, (text, file) in enumerate(zip(texts, photos, strict=True)):
        (expected,) = model.answer([read_image(file)], [text], max_new_tokens=4)
        assert replies[place].text == expected


def test_first_tokens_of_a_tiny_model_are_those_of_its_answers(photos: list[Path]):
    asker = local_asker("tiny")
    question = Question("what color is the circle?", (photos[0],))
    (answer,) = (reply.text for _, reply in asker.ask([question], 1))
    words = ["red", "blue", "green", "yellow", "circle", answer]
    ((_, found),) = asker.first_tokens([question], [words])
    assert not isinstance(found, str) and max(found) == found[-1] and 0 < sum(set(found)) <= 1.0001


def test_what_a_tiny_model_cannot_be_asked_is_said(photos: list[Path]):
    questions = [Question("both?", (photos[0], photos[1])), Question("none?")]
    for _, reply in local_asker("tiny").ask(questions, 4):
        assert "expected a question about one image, which tiny answers" in (reply.problem or "")


def test_no_model_is_named():
    with pytest.raises(ValueError, match="expected who answers"):
        AskerOptions().build()
