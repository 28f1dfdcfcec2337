"""UMM-2 against the class that defines it, on random-weight checkpoints saved and loaded as real
ones are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import JanusForConditionalGeneration, JanusProcessor

from uae.config import CaptionSettings, DecodeSettings
from uae.models.encoders.tokens import draw
from uae.models.janus import Janus
from uae.models.load import load_model
from uae.utils.seed import uniforms
from uae.world.data import SceneImages
from uae.world.models import build_janus
from uae.world.scene import render_batch, scene_at

QUESTIONS = ["describe the image", "is there a red circle ?", "describe the image in full detail"]
PROMPTS = [
    "a red circle",
    "a small blue square left and a large ring center on gray",
    "some shapes",
]
GUIDED = DecodeSettings(guidance_scale=3.0, temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("janus")
    build_janus().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def janus(folder: Path) -> Janus:
    return Janus.from_pretrained(folder)


@pytest.fixture(scope="module")
def library(folder: Path) -> JanusForConditionalGeneration:
    return JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> JanusProcessor:
    return JanusProcessor.from_pretrained(folder, backend="pil")


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    """Three pictures of three sizes."""
    scene = torch.from_numpy(render_batch([scene_at("test", i) for i in range(2)]))
    photo = (
        torch.rand(3, 100, 70, generator=torch.Generator().manual_seed(1)).mul(255).round() / 255
    )
    return [scene[0], torch.nn.functional.pad(scene[1], (0, 40), value=0.5), photo]


def library_inputs(processor: JanusProcessor, image: torch.Tensor, question: str) -> dict:
    """One image and question through the library's own processor."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    return dict(processor(images=[pixels], text=text, return_tensors="pt"))


def painting_inputs(processor: JanusProcessor, texts: list[str]) -> dict:
    chats = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
    prompts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    return dict(processor(text=prompts, generation_mode="image", padding=True, return_tensors="pt"))


def test_is_loaded_by_its_configuration_or_by_what_uae_wrote(folder: Path, tmp_path: Path):
    assert isinstance(load_model(str(folder)), Janus)
    for file in folder.iterdir():
        if file.name != "uae.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert isinstance(load_model(str(tmp_path)), Janus)


@pytest.mark.parametrize("system_prompt", [False, True])
def test_prompts_and_pixels_equal_the_librarys_processor(
    folder: Path, images: list[torch.Tensor], system_prompt: bool
):
    janus = Janus.from_pretrained(folder)
    janus.processor.use_default_system_prompt = system_prompt
    for image, question in zip(images, QUESTIONS, strict=True):
        wanted = library_inputs(janus.processor, image, question)
        assert list(janus.prompt(question, 144)) == wanted["input_ids"][0].tolist()
        torch.testing.assert_close(
            janus._square(image), wanted["pixel_values"][0], atol=1e-6, rtol=0
        )


def test_greedy_captions_equal_generate(
    janus: Janus,
    library: JanusForConditionalGeneration,
    processor: JanusProcessor,
    images: list[torch.Tensor],
):
    context = janus.look(images, QUESTIONS, temperature=0.0)
    captions = janus.sample(context, max_new_tokens=12)
    for i, (image, question) in enumerate(zip(images, QUESTIONS, strict=True)):
        inputs = library_inputs(processor, image, question)
        generated = library.generate(
            **inputs, do_sample=False, max_new_tokens=12, eos_token_id=janus.end_ids
        )
        wanted = generated[0, inputs["input_ids"].shape[1] :]
        ours = captions.rollout.actions[i][captions.rollout.mask[i]]
        assert ours.tolist() == wanted[: len(ours)].tolist()


def test_caption_log_probs_equal_the_classs_forward(
    janus: Janus,
    library: JanusForConditionalGeneration,
    processor: JanusProcessor,
    images: list[torch.Tensor],
):
    captions = janus.caption(images, CaptionSettings(max_new_tokens=8), group_size=2)
    rollout = captions.rollout
    scored = janus.evaluate(rollout, with_kl=False).log_probs
    torch.testing.assert_close(
        scored[rollout.mask], rollout.log_probs[rollout.mask], atol=1e-5, rtol=0
    )
    for i, image in enumerate(images):
        inputs = library_inputs(processor, image, CaptionSettings().instruction)
        tokens = rollout.actions[2 * i][rollout.mask[2 * i]]
        ids = torch.cat([inputs["input_ids"], tokens[None]], 1)
        logits = library(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[
            0, -len(tokens) - 1 : -1
        ]
        wanted = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        torch.testing.assert_close(
            rollout.log_probs[2 * i, : len(tokens)], wanted, atol=1e-5, rtol=0
        )


def test_an_images_tokens_equal_the_classs(janus: Janus, library: JanusForConditionalGeneration):
    pictures = torch.from_numpy(render_batch([scene_at("test", i) for i in range(2)]))
    with torch.no_grad():
        wanted = library.model.vqmodel.encode(pictures * 2 - 1).image_tokens.view(2, -1)
        assert torch.equal(janus.image_tokens(pictures), wanted)
        assert torch.equal(janus.decoder.round_trip(pictures), janus.pixels(wanted))


@pytest.mark.parametrize("guidance", [1.5, 5.0])
def test_greedy_image_tokens_and_pixels_equal_generate(
    janus: Janus, library: JanusForConditionalGeneration, processor: JanusProcessor, guidance: float
):
    painted = janus.generate(PROMPTS, DecodeSettings(guidance_scale=guidance, temperature=0.0))
    inputs = painting_inputs(processor, PROMPTS)
    wanted = library.generate(
        **inputs, generation_mode="image", do_sample=False, guidance_scale=guidance
    )
    assert painted.rollout is not None
    assert painted.rollout.actions.tolist() == wanted.tolist()
    pictures = processor.postprocess(
        list(library.decode_image_tokens(wanted).permute(0, 3, 1, 2)), return_tensors="np"
    )
    shown = np.stack(pictures["pixel_values"]).astype(np.float32)
    ours = (painted.images * 255).numpy()
    assert np.abs(np.floor(ours + 1e-3) - shown).max() <= 1  # the processor cuts fractions off


def test_sampled_image_tokens_equal_generate_given_the_same_draws(
    janus: Janus,
    library: JanusForConditionalGeneration,
    processor: JanusProcessor,
    monkeypatch: pytest.MonkeyPatch,
):
    draws = iter(uniforms(3, 7, range(6), "image", 144).T)
    monkeypatch.setattr(
        torch,
        "multinomial",
        lambda probs, num_samples: draw(probs.double().log().float(), next(draws))[:, None],
    )
    inputs = painting_inputs(processor, PROMPTS)
    wanted = library.generate(
        **inputs,
        generation_mode="image",
        do_sample=True,
        guidance_scale=3.0,
        num_return_sequences=2,
        top_k=0,
    )
    painted = janus.generate(
        PROMPTS, DecodeSettings(guidance_scale=3.0), group_size=2, seed=3, step=7
    )
    assert painted.rollout is not None
    assert painted.rollout.actions.tolist() == wanted.tolist()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_image_log_probs_are_those_of_the_conditional_stream(
    janus: Janus, library: JanusForConditionalGeneration, processor: JanusProcessor, guidance: float
):
    painted = janus.generate(PROMPTS, DecodeSettings(guidance_scale=guidance), group_size=2)
    rollout = painted.rollout
    assert rollout is not None
    scored = janus.decoder.evaluate(rollout, with_kl=True)
    torch.testing.assert_close(scored.log_probs, rollout.log_probs, atol=1e-5, rtol=0)
    assert scored.kl is not None
    assert scored.kl.abs().max() == 0  # nothing was trained
    ids = painting_inputs(processor, PROMPTS[:1])["input_ids"]
    embeds = [library.get_input_embeddings()(ids)]
    embeds.append(library.prepare_embeddings_for_image_generation(rollout.actions[:1, :-1]))
    states = library.model.language_model(inputs_embeds=torch.cat(embeds, 1)).last_hidden_state
    logits = library.model.generation_head(states[:, ids.shape[1] - 1 :])
    wanted = logits.log_softmax(-1).gather(-1, rollout.actions[:1, :, None])[..., 0]
    torch.testing.assert_close(rollout.log_probs[:1], wanted, atol=1e-5, rtol=0)
    gap = painted.metrics["image/guidance_gap"]
    assert gap == 0 if guidance == 1 else gap > 0


def test_images_do_not_depend_on_how_a_batch_is_split(janus: Janus):
    whole = janus.generate(PROMPTS, DecodeSettings(guidance_scale=3.0), group_size=2, seed=1)
    parts = janus.generate(
        PROMPTS, DecodeSettings(guidance_scale=3.0, micro_batch=4), group_size=2, seed=1
    )
    assert whole.rollout is not None
    assert parts.rollout is not None
    assert whole.rollout.actions.tolist() == parts.rollout.actions.tolist()
    torch.testing.assert_close(whole.images, parts.images, atol=1e-5, rtol=0)


def test_a_prompt_is_run_once_whatever_the_number_of_images(
    janus: Janus, monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    begin = janus.begin
    monkeypatch.setattr(
        janus, "begin", lambda ids, *rest: sizes.append(len(ids)) or begin(ids, *rest)
    )
    janus.generate([*PROMPTS, PROMPTS[0]], GUIDED, group_size=4)
    assert sizes == [2 * len(PROMPTS)]  # with and without words


def test_the_reference_answers_for_both_halves_as_they_were(
    folder: Path, images: list[torch.Tensor]
):
    janus = Janus.from_pretrained(folder)
    janus.train_language_model()
    captions = janus.caption(images, CaptionSettings(max_new_tokens=5))
    painted = janus.generate(PROMPTS, DecodeSettings())
    assert painted.rollout is not None
    with torch.no_grad():
        for parameter in janus.named_trainable_parameters().values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    for policy, rollout in ((janus.encoder, captions.rollout), (janus.decoder, painted.rollout)):
        kl = policy.evaluate(rollout, with_kl=True).kl
        assert kl is not None
        assert kl[rollout.mask].mean() > 1e-3
        with janus.reference():
            torch.testing.assert_close(
                policy.evaluate(rollout, with_kl=False).log_probs[rollout.mask],
                rollout.log_probs[rollout.mask],
                atol=1e-5,
                rtol=0,
            )


def test_only_the_language_model_learns(folder: Path):
    janus = Janus.from_pretrained(folder)
    janus.train_language_model()
    names = set(janus.named_trainable_parameters())
    assert names
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in names)


def test_other_pixels_than_it_paints_are_refused(janus: Janus):
    with pytest.raises(ValueError, match="paints 48x48 pixels, got 64x64"):
        janus.generate(PROMPTS, DecodeSettings(height=64, width=64))


def test_gradients_are_the_same_bits_every_time():
    """On two threads too, where many captions lean on one image's prompt: what resuming to the bit
    rests on."""
    model = build_janus()
    model.begin_training(0, captions=True, decoding=None)
    rollout = model.caption(
        SceneImages().batch(0, 1), CaptionSettings(max_new_tokens=8), group_size=64
    ).rollout

    def gradient() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        model.evaluate(rollout, with_kl=False).log_probs.sum().backward()
        return torch.cat(
            [
                p.grad.flatten()
                for p in model.named_trainable_parameters().values()
                if p.grad is not None
            ]
        )

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(5))
