"""The encoder against the class that defines it, on random-weight checkpoints saved and loaded as
real ones are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.models.real_layouts import write_qwen
from uae.models.encoders.qwen_vl import ImageSettings, QwenVL
from uae.models.encoders.tokens import draw, pad
from uae.world.models import build_captioner
from uae.world.scene import render_batch, scene_at

SEED_WITHOUT_PADS = (
    2  # random weights may say the image pad, which the class takes for a second image
)
QUESTIONS = ["describe the image", "is there a red circle ?", "describe the image in full detail"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    captioner = build_captioner()
    captioner.image_settings = ImageSettings(
        32 * 32, 96 * 96, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    )
    with torch.no_grad():
        for parameter in captioner.model.parameters():
            parameter.mul_(2)  # so that greedy choices are not near-ties
    folder = tmp_path_factory.mktemp("qwen")
    captioner.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(folder: Path) -> QwenVL:
    return QwenVL.from_pretrained(folder)


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    """Three pictures of three sizes, so that prompts are of three lengths."""
    scene = torch.from_numpy(render_batch([scene_at("test", i) for i in range(3)]))
    wide = torch.nn.functional.pad(scene[1], (0, 40), value=0.5)
    photo = (
        torch.rand(3, 100, 70, generator=torch.Generator().manual_seed(1)).mul(255).round() / 255
    )
    return [scene[0], wide, photo]


def library_inputs(captioner: QwenVL, folder: Path, image: torch.Tensor, question: str) -> dict:
    """One image and question through the library's own image processor."""
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    seen = processor(pixels, return_tensors="pt")
    num_tokens = (
        int(seen["image_grid_thw"].prod())
        // captioner.model.config.vision_config.spatial_merge_size**2
    )
    ids = torch.tensor([captioner.prompt(question, num_tokens)])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == captioner.image_pad_id).int(),
        "pixel_values": seen["pixel_values"],
        "image_grid_thw": seen["image_grid_thw"],
    }


def test_patches_equal_the_librarys_image_processor(
    captioner: QwenVL, folder: Path, images: list[torch.Tensor]
):
    for image in images:
        patches, grid = captioner._patches(image)
        wanted = library_inputs(captioner, folder, image, "describe the image")
        assert grid.tolist() == wanted["image_grid_thw"][0].tolist()
        torch.testing.assert_close(patches, wanted["pixel_values"], atol=1e-6, rtol=0)


def test_greedy_captions_equal_generate(
    captioner: QwenVL, folder: Path, images: list[torch.Tensor]
):
    captions = captioner.sample(
        captioner.look(images, QUESTIONS, temperature=0.0), max_new_tokens=12
    )
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    for i, (image, question) in enumerate(zip(images, QUESTIONS, strict=True)):
        inputs = library_inputs(captioner, folder, image, question)
        wanted = model.generate(**inputs, max_new_tokens=12, do_sample=False)[
            0, inputs["input_ids"].shape[1] :
        ]
        assert captions.rollout.actions[i][captions.rollout.mask[i]].tolist() == wanted.tolist()


def test_the_published_repetition_penalty_does_not_count(
    images: list[torch.Tensor], tmp_path: Path
):
    """What is sampled, scored and measured is the model's own distribution: that of ``generate`` at
    penalty 1."""
    torch.manual_seed(3)
    folder = write_qwen(tmp_path)  # its generation_config.json has the published 1.05
    captioner = QwenVL.from_pretrained(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    assert model.generation_config.repetition_penalty == 1.05
    captions = captioner.sample(
        captioner.look(images, QUESTIONS, temperature=0.0), max_new_tokens=48
    )
    ours = [
        row[keep].tolist()
        for row, keep in zip(captions.rollout.actions, captions.rollout.mask, strict=True)
    ]

    def generated(**options: float) -> list[list[int]]:
        inputs = [
            library_inputs(captioner, folder, image, q)
            for image, q in zip(images, QUESTIONS, strict=True)
        ]
        made = [
            model.generate(**i, max_new_tokens=48, do_sample=False, **options)[0] for i in inputs
        ]
        return [
            tokens[i["input_ids"].shape[1] :].tolist()
            for tokens, i in zip(made, inputs, strict=True)
        ]

    assert ours == generated(repetition_penalty=1.0)
    assert ours != generated()  # it would make a difference
    gap = captioner.evaluate(captions.rollout, with_kl=False).log_probs - captions.rollout.log_probs
    assert gap[captions.rollout.mask].abs().max() < 1e-4

    settings = folder / "generation_config.json"
    settings.write_text(settings.read_text().replace("1.05", "1.5"))
    strict = QwenVL.from_pretrained(folder)
    again = strict.sample(strict.look(images, QUESTIONS, temperature=0.0), max_new_tokens=48)
    assert torch.equal(again.rollout.actions, captions.rollout.actions)


def test_log_probs_equal_the_class_forward(
    captioner: QwenVL, folder: Path, images: list[torch.Tensor]
):
    context = captioner.look(images, QUESTIONS, group_size=2, temperature=0.7)
    rollout = captioner.sample(context, max_new_tokens=8, seed=3).rollout
    evaluation = captioner.evaluate(rollout, with_kl=False)
    for b in range(len(rollout)):
        tokens = rollout.actions[b][rollout.mask[b]][None]
        inputs = library_inputs(captioner, folder, images[b // 2], QUESTIONS[b // 2])
        num_prompt = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == captioner.image_pad_id).int()
        logits = captioner.model(**inputs).logits[0, num_prompt - 1 : -1] / 0.7
        wanted = torch.log_softmax(logits, -1).gather(-1, tokens[0, :, None])[:, 0]
        torch.testing.assert_close(
            evaluation.log_probs[b, : len(wanted)], wanted, atol=2e-5, rtol=1e-5
        )


def test_sampling_and_scoring_agree(folder: Path, images: list[torch.Tensor]):
    """In float64, as kernels for one token round otherwise than those for many: by 4e-5 in fp32 on
    some CPUs."""
    captioner = QwenVL.from_pretrained(folder, torch.float64)
    context = captioner.look([image.double() for image in images], QUESTIONS, group_size=3)
    rollout = captioner.sample(context, max_new_tokens=10, seed=5).rollout
    gap = (captioner.evaluate(rollout, with_kl=False).log_probs - rollout.log_probs)[rollout.mask]
    assert gap.abs().max() < 2e-6


def test_a_caption_does_not_depend_on_its_batch(captioner: QwenVL, images: list[torch.Tensor]):
    context = captioner.look(images, QUESTIONS, group_size=2)
    together = captioner.sample(context, max_new_tokens=10, seed=7)
    alone = captioner.sample(
        captioner.look(images[:1], QUESTIONS[:1], group_size=2), max_new_tokens=10, seed=7
    )
    assert together.texts[:2] == alone.texts
    assert together.texts[0] != together.texts[1], (
        "two draws of one image should differ at temperature 1"
    )


def test_vision_tower_and_prompt_run_once_per_image(captioner: QwenVL, images: list[torch.Tensor]):
    patches_seen, prompt_rows = [], []
    hooks = [
        captioner.model.model.visual.register_forward_pre_hook(
            lambda m, args: patches_seen.append(len(args[0]))
        ),
        captioner.language_model.layers[0].register_forward_pre_hook(
            lambda m, args: prompt_rows.append(args[0].shape[:2])
        ),
    ]
    captioner.sample(captioner.look(images, QUESTIONS, group_size=4), max_new_tokens=3)
    for hook in hooks:
        hook.remove()
    assert patches_seen == [sum(len(captioner._patches(image)[0]) for image in images)]
    prefill = [shape for shape in prompt_rows if shape[1] > 1]
    assert [shape[0] for shape in prefill] == [3], "one prompt row per image, not per caption"


def test_scoring_sends_gradients_through_the_shared_prompt(
    folder: Path, images: list[torch.Tensor]
):
    """The prefix cache is differentiable: gradients equal those of plain forwards over whole
    sequences."""
    shared, plain = QwenVL.from_pretrained(folder), QwenVL.from_pretrained(folder)
    for model in (shared, plain):
        model.model.model.visual.requires_grad_(False)
    rollout = shared.sample(
        shared.look(images[:1], QUESTIONS[:1], group_size=3),
        max_new_tokens=6,
        seed=SEED_WITHOUT_PADS,
    ).rollout
    (shared.evaluate(rollout, with_kl=False).log_probs * rollout.mask).sum().backward()
    inputs = library_inputs(plain, folder, images[0], QUESTIONS[0])
    num_prompt = inputs["input_ids"].shape[1]
    for b in range(3):
        tokens = rollout.actions[b][rollout.mask[b]][None]
        whole = dict(inputs, input_ids=torch.cat([inputs["input_ids"], tokens], 1))
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        whole["mm_token_type_ids"] = (whole["input_ids"] == plain.image_pad_id).int()
        scores = torch.log_softmax(plain.model(**whole).logits[0, num_prompt - 1 : -1], -1)
        scores.gather(-1, tokens[0, :, None]).sum().backward()
    name = "model.language_model.layers.0.self_attn.k_proj.weight"
    got, wanted = (dict(m.model.named_parameters())[name].grad for m in (shared, plain))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_reference_stays_where_training_began(
    folder: Path, images: list[torch.Tensor], lora_rank: int
):
    captioner = QwenVL.from_pretrained(folder)
    captioner.model.requires_grad_(False)
    if lora_rank:
        captioner.add_lora(lora_rank)
    else:
        captioner.train_language_model()
    rollout = captioner.sample(captioner.look(images, QUESTIONS), max_new_tokens=6).rollout
    start = captioner.evaluate(rollout, with_kl=True)
    assert start.kl is not None
    torch.testing.assert_close(
        start.kl[rollout.mask], torch.zeros_like(start.kl[rollout.mask]), atol=1e-6, rtol=0
    )
    with torch.no_grad():
        for parameter in captioner.named_trainable_parameters().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    moved = captioner.evaluate(rollout, with_kl=True)
    assert moved.kl is not None and moved.kl[rollout.mask].mean() > 1e-4
    with captioner.reference(), torch.no_grad():
        back = captioner.evaluate(rollout, with_kl=False)
    torch.testing.assert_close(back.log_probs, start.log_probs, atol=1e-6, rtol=0)
    assert not any(".visual." in name for name in captioner.named_trainable_parameters())


def test_lora_starts_the_same_in_every_run(folder: Path):
    starts = []
    for _ in range(2):
        torch.rand(3)  # whatever was drawn before
        captioner = QwenVL.from_pretrained(folder)
        captioner.model.requires_grad_(False)
        captioner.add_lora(4)
        starts.append(captioner.named_trainable_parameters())
    assert all(torch.equal(parameter, starts[1][name]) for name, parameter in starts[0].items())


def test_lora_is_saved_beside_weights_that_it_does_not_change(
    folder: Path, images: list[torch.Tensor], tmp_path: Path
):
    captioner = QwenVL.from_pretrained(folder)
    captioner.model.requires_grad_(False)
    captioner.add_lora(4)
    with torch.no_grad():
        for parameter in captioner.named_trainable_parameters().values():
            parameter.normal_(std=0.1)
    captioner.save_pretrained(tmp_path)
    loaded, base = QwenVL.from_pretrained(tmp_path), QwenVL.from_pretrained(folder)
    wanted = base.model.state_dict()
    for name, weight in loaded.adapters.without().state_dict().items():
        assert torch.equal(weight, wanted[name]), name
    adapter = loaded.adapters.read(loaded.adapters.active)
    assert (
        adapter is not None
        and len(adapter.factors) == 7 * base.model.config.text_config.num_hidden_layers
    )
    rollout = captioner.sample(
        captioner.look(images, QUESTIONS), max_new_tokens=6
    ).rollout  # the adapter was kept
    wanted, again, before = (
        m.evaluate(rollout, with_kl=False).log_probs for m in (captioner, loaded, base)
    )
    assert torch.equal(wanted, again)
    assert (wanted - before)[rollout.mask].abs().max() > 0.5


def test_drawing_follows_the_distribution():
    log_probs = torch.tensor([[0.1, 0.6, 0.3]]).log()
    tokens = [int(draw(log_probs, torch.tensor([u]))) for u in (0.0, 0.05, 0.15, 0.65, 0.75, 0.999)]
    assert tokens == [0, 0, 1, 1, 2, 2]


def test_padding_sides():
    ids, mask = pad([[1, 2], [3]], 9, "left", torch.device("cpu"))
    assert ids.tolist() == [[1, 2], [9, 3]]
    assert mask.tolist() == [[True, True], [False, True]]
    assert pad([[1, 2], [3]], 9, "right", torch.device("cpu"))[0].tolist() == [[1, 2], [3, 9]]
