"""Captions by a real vLLM server, a process of its own: `pytest -m vllm`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
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
from tests.models.vllm_serve import SHIPPED, VLLMServer
from tests.rl import tiny_run
from uae.config import VLLMSettings
from uae.models.encoders.qwen_vl import QwenVL
from uae.rl.train import train
from uae.utils.metrics import read_metrics
from uae.world.data import SceneImages

pytest.importorskip("vllm", reason=REASON)
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1200)]
images = vllm_captions.images


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    server = VLLMServer(tmp_path_factory.mktemp("server") / "log.txt")
    yield server
    server.close()


@pytest.fixture
def settings(server: VLLMServer, tmp_path: Path) -> VLLMSettings:
    return VLLMSettings(max_length=1024, server=server.url, folder=str(tmp_path))


@pytest.fixture
def served(settings: VLLMSettings) -> Iterator[QwenVL]:
    captioner = QwenVL.from_pretrained(SHIPPED)
    with captioner.sampled_by_vllm(settings):
        yield captioner


def test_greedy_captions_are_the_built_in_ones(
    served: QwenVL, images: list[Tensor], tmp_path: Path
):
    check_same(served.caption(images, GREEDY), built_in(served, images, GREEDY))
    short = replace(GREEDY, max_new_tokens=3)
    captions = served.caption(images, short)
    assert captions.truncated.any()
    check_same(captions, built_in(served, images, short))
    assert list(tmp_path.iterdir()) == []  # no weights are left behind


@pytest.mark.parametrize("lora_rank", [4, 0], ids=["lora", "full"])
def test_after_a_push_it_answers_by_the_new_weights(
    served: QwenVL, images: list[Tensor], lora_rank: int
):
    check_it_follows(served, images, lora_rank)


def test_the_prefix_cache_is_emptied(
    served: QwenVL, images: list[Tensor], monkeypatch: pytest.MonkeyPatch
):
    """Where it is not, the same prompts are answered by what the old weights made of them."""
    before = served.caption(images, LONG)
    check_same(before, built_in(served, images, LONG))
    change(served, 4)
    expected = built_in(served, images, LONG)
    assert before.texts != expected.texts
    connection = served.sampler._engine._server  # type: ignore[union-attr]
    post: Callable[..., Any] = connection.post
    kept = {"/reset_prefix_cache": {"success": True}}
    with monkeypatch.context() as patch:
        patch.setattr(connection, "post", lambda path, body: kept.get(path) or post(path, body))
        assert served.caption(images, LONG).texts != expected.texts
    check_same(served.caption(images, LONG), expected)


def test_draws_belong_to_sequences(served: QwenVL, images: list[Tensor]):
    draws: dict[str, Any] = {"group_size": 3, "seed": 5, "step": 2}
    whole = served.caption(images, DRAWN, **draws)
    assert len(set(whole.texts)) > 6  # they are drawn
    part = served.caption([images[4], images[1]], DRAWN, keys=[4, 1], **draws)
    assert part.texts == whole.texts[12:15] + whole.texts[3:6]
    assert served.caption(images, DRAWN, **(draws | {"seed": 6})).texts != whole.texts


def test_another_run_that_pushes_is_noticed(
    served: QwenVL, settings: VLLMSettings, images: list[Tensor]
):
    served.caption(images[:1], GREEDY)
    other = QwenVL.from_pretrained(SHIPPED)
    with other.sampled_by_vllm(settings):
        other.caption(images[:1], GREEDY)
    context = served.look(images[:1], [GREEDY.instruction], temperature=0.0)
    with pytest.raises(ValueError, match="expected answers by the weights that were pushed"):
        served.sampler.sample(context, max_new_tokens=3)  # type: ignore[union-attr]


# --- a run ---------------------------------------------------------------------------------------


def run(folder: Path, settings: VLLMSettings, after_step: Callable[[int], None] = int) -> None:
    class Watched(SceneImages):
        def batch(self, step: int, num_images: int) -> list[Tensor]:
            after_step(step)
            return super().batch(step, num_images)

    model = tiny_run.build_model()
    changes = {"caption_sampler": "vllm", "vllm": settings, "use_bf16": False, "save_every": 1}
    config = tiny_run.config(3, **changes)
    train(model, tiny_run.reward(), Watched(), config, folder, {"model": "test"})


def test_two_processes_say_and_learn_what_one_does(server: VLLMServer, tmp_path: Path):
    one, two = (said_by(num, tmp_path / str(num), server.url) for num in (1, 2))
    assert sorted(one) == ["0", "1", "2", "3"] and one == two
    one, two = (read_metrics(tmp_path / f"{num}-run/metrics.jsonl") for num in (1, 2))
    assert len(one) == len(two) == 2
    for alone, together in zip(one, two, strict=True):
        for name in ("reward/total", "rl/entropy", "rl/grad_norm", "caption/tokens"):
            # after a step of AdamW rounding counts as any other gradient
            near = 1e-5 if alone is one[0] else 1e-2
            assert together[name] == pytest.approx(alone[name], rel=near)


def test_a_server_that_dies_stops_the_run_which_goes_on(tmp_path: Path):
    server = VLLMServer(tmp_path / "log.txt")
    settings = VLLMSettings(max_length=1024, server=server.url)
    run(tmp_path / "whole", settings)
    steps = read_metrics(tmp_path / "whole/metrics.jsonl")
    assert len(steps) == 3 and max(step["rl/log_prob_gap"] for step in steps) < 1e-3

    def die_before_the_last(step: int) -> None:
        if step == 2:
            server.close()

    with pytest.raises(ValueError, match=r"does not answer .*; start it, and the same command"):
        run(tmp_path / "parts", settings, die_before_the_last)
    assert len(read_metrics(tmp_path / "parts/metrics.jsonl")) == 2
    server = VLLMServer(tmp_path / "log.txt", server.port)
    run(tmp_path / "parts", settings)
    server.close()
    tiny_run.check_same_weights(tmp_path / "whole", tmp_path / "parts", 3)
