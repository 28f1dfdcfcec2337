"""Captions by a real engine of vLLM beside the model that learns: `pytest -m vllm`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models import vllm_captions
from tests.models.vllm_captions import (
    DRAWN,
    GREEDY,
    LONG,
    REASON,
    built_in,
    change,
    check_it_follows,
    check_same,
    said_by,
)
from tests.rl import tiny_run
from uae.config import CaptionSettings, VLLMSettings
from uae.models.encoders.qwen_vl import QwenVL
from uae.rl.train import train
from uae.utils.checkpoint import load_latest
from uae.utils.metrics import read_metrics
from uae.world.data import SceneImages
from uae.world.models import build_captioner

pytest.importorskip("vllm", reason=REASON)
pytestmark = [pytest.mark.vllm, pytest.mark.slow]
images = vllm_captions.images

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "src/uae/assets/umm1/encoder"
SMALL = VLLMSettings(max_length=1024, cache_gb=0.25)


@pytest.fixture
def captioner() -> QwenVL:
    """That of the shipped model, in fp32."""
    return QwenVL.from_pretrained(SHIPPED)


@pytest.fixture
def served(captioner: QwenVL) -> Iterator[QwenVL]:
    with captioner.sampled_by_vllm(SMALL):
        yield captioner


def test_greedy_captions_are_the_built_in_ones(served: QwenVL, images: list[Tensor]):
    check_same(served.caption(images, GREEDY), built_in(served, images, GREEDY))


def test_cut_and_empty_captions_are_too(served: QwenVL, images: list[Tensor]):
    short = CaptionSettings(temperature=0.0, max_new_tokens=3)
    captions = served.caption(images, short)
    assert captions.truncated.any()
    check_same(captions, built_in(served, images, short))
    served.end_ids = list(range(len(served.tokenizer)))  # whatever comes first ends it
    captions = served.caption(images, short)
    assert captions.rollout.actions.shape == (6, 1) and not captions.truncated.any()
    check_same(captions, built_in(served, images, short))


@pytest.mark.parametrize("lora_rank", [4, 0], ids=["lora", "full"])
def test_after_a_push_it_answers_by_the_new_weights(
    served: QwenVL, images: list[Tensor], lora_rank: int
):
    check_it_follows(served, images, lora_rank)


def test_the_prefix_cache_is_emptied(served: QwenVL, images: list[Tensor]):
    """Where it is not, the same prompts are answered by what the old weights made of them."""
    assert served.sampler is not None
    before = served.caption(images, LONG)
    check_same(before, built_in(served, images, LONG))
    change(served, 4)
    expected = built_in(served, images, LONG)
    assert before.texts != expected.texts
    engine = served.sampler._engine._llm  # type: ignore[attr-defined]
    reset, engine.reset_prefix_cache = engine.reset_prefix_cache, lambda: True
    assert served.caption(images, LONG).texts != expected.texts
    engine.reset_prefix_cache = reset
    check_same(served.caption(images, LONG), expected)


def test_draws_belong_to_sequences(served: QwenVL, images: list[Tensor]):
    draws: dict[str, Any] = {"group_size": 3, "seed": 5, "step": 2}
    whole = served.caption(images, DRAWN, **draws)
    again = served.caption(images, DRAWN, **draws)
    assert again.texts == whole.texts
    part = served.caption([images[4], images[1]], DRAWN, keys=[4, 1], **draws)
    assert part.texts == whole.texts[12:15] + whole.texts[3:6]
    others: list[dict[str, Any]] = [{"seed": 6}, {"step": 3}]
    for other in others:
        assert served.caption(images, DRAWN, **(draws | other)).texts != whole.texts


def test_draws_are_of_the_policy(served: QwenVL, images: list[Tensor]):
    """The first words of many captions of an image come as often as the model says, at the
    temperature."""
    num = 2000
    settings = CaptionSettings(temperature=1.5, max_new_tokens=1)
    tokens = served.caption(images[:1], settings, group_size=num).rollout.actions[:, 0]
    context = served.look(images[:1], [settings.instruction])
    logits = served.advance(prefix := served.prefill(context), prefix.last_token[:, None])[0, -1]
    expected = torch.softmax(logits.detach() / 1.5, 0)
    seen = torch.bincount(tokens, minlength=len(expected)) / num
    assert (seen - expected).abs().max() < 4 * (0.25 / num) ** 0.5  # four deviations


def test_the_process_is_left_as_it_was(captioner: QwenVL, images: list[Tensor]):
    state, num_threads = torch.get_rng_state(), torch.get_num_threads()
    for _ in range(2):  # one engine after another
        with captioner.sampled_by_vllm(SMALL):
            captioner.caption(images[:1], GREEDY)
            torch.set_num_threads(num_threads + 1)
            assert torch.get_num_threads() == num_threads + 1
            torch.set_num_threads(num_threads)
        assert captioner.sampler is None and not torch.distributed.is_initialized()
    assert torch.equal(torch.get_rng_state(), state)


def test_autocast_of_the_trainer_is_not_the_engines(served: QwenVL, images: list[Tensor]):
    plain = built_in(served, images, GREEDY)
    context = served.look(images, [GREEDY.instruction] * 6, temperature=0.0)
    assert served.sampler is not None
    served.sampler.push()
    with torch.autocast("cpu", torch.bfloat16):
        captions = served.sampler.sample(context, max_new_tokens=40)
    check_same(captions, plain)


# --- a run ---------------------------------------------------------------------------------------


def run(folder: Path, sampler: str, until: int | None = None) -> list[dict[str, float]]:
    model = tiny_run.build_model()
    changes = {"caption_sampler": sampler, "vllm": SMALL, "use_bf16": False, "save_every": 1}
    config = tiny_run.config(5, **changes)
    train(model, tiny_run.reward(), SceneImages(), config, folder, {"model": "test"}, until)
    return read_metrics(folder / "metrics.jsonl")


def test_five_steps_with_either_sampler(tmp_path: Path):
    theirs, ours = (run(tmp_path / sampler, sampler) for sampler in ("vllm", "builtin"))
    for steps in (theirs, ours):
        assert len(steps) == 5
        assert max(step["rl/log_prob_gap"] for step in steps) < 1e-3
        assert all(step["rl/grad_norm"] > 0 for step in steps)
    assert theirs[0]["rl/entropy"] == pytest.approx(ours[0]["rl/entropy"], rel=0.1)
    first, last = (load_latest(tmp_path / "vllm/checkpoints"), tiny_run.build_model())
    assert first is not None
    start = last.encoder.named_trainable_parameters()
    moved = [not torch.equal(start[n], v) for n, v in first.weights["policy"].items() if n in start]
    assert any(moved)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path):
    """A new engine samples by the weights of the checkpoint."""
    run(tmp_path / "whole", "vllm")
    run(tmp_path / "parts", "vllm", until=2)
    run(tmp_path / "parts", "vllm")
    tiny_run.check_same_weights(tmp_path / "whole", tmp_path / "parts", 5)


def test_two_processes_say_what_one_says(tmp_path: Path):
    one, two = (said_by(num, tmp_path / str(num)) for num in (1, 2))
    assert sorted(one) == ["0", "1", "2", "3"] and one == two


def test_a_model_from_nothing_needs_no_files(images: list[Tensor]):
    captioner = build_captioner().eval()
    with captioner.sampled_by_vllm(SMALL):
        check_same(captioner.caption(images, GREEDY), built_in(captioner, images, GREEDY))
