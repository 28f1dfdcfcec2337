"""Each phase of a step and of loading shows what it does, and showing it changes no bit."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.rl.tiny_run import build_model, config, likeness
from uae.config import DecodeSettings
from uae.models.janus import Janus
from uae.models.load import load_model
from uae.rewards.base import WeightedSum
from uae.rl.config import TrainConfig
from uae.rl.learning import Learning
from uae.rl.train import train, train_step
from uae.utils import progress
from uae.utils.progress import show_phases
from uae.world.data import SceneImages
from uae.world.models import build_janus

SDE = DecodeSettings(num_steps=3, sampler="sde", window_size=2, micro_batch=4)


@pytest.fixture
def every_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each unit that is done, as if each had taken half a minute."""
    monkeypatch.setattr(progress, "EVERY_SEC", 0.0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So that the same work has the same bits: two threads add a gather's gradients in any
    order."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def without_times(text: str) -> list[str]:
    return [re.sub(r"  (ETA )?\d+m\d\ds$", "", line) for line in text.splitlines()]


def umm1():
    model = build_model()
    model.begin_training(0, captions=True, decoding=SDE)
    return model, config(1, group_size=4, decoding=SDE, micro_batch=3, use_bf16=False)


def umm2() -> tuple[Janus, TrainConfig]:
    torch.manual_seed(0)
    model = build_janus()
    decoding = DecodeSettings(micro_batch=4)
    model.begin_training(0, captions=True, decoding=decoding)
    return model, config(1, group_size=4, decoding=decoding, micro_batch=3, use_bf16=False)


def one_step(model, settings: TrainConfig) -> list[torch.Tensor]:
    """The weights after a step."""
    parameters = list({id(p): p for p in model.parameters() if p.requires_grad}.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    reward = WeightedSum({"likeness": (1.0, likeness), "again": (0.0, likeness)})
    rewards, batch = {"images": reward}, SceneImages().batch(0, 2)
    train_step(model, rewards, batch, settings, Learning(optimizer), 0)
    return [p.detach().clone() for p in parameters]


@pytest.mark.usefixtures("every_unit", "one_thread")
@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            umm1,
            [
                "captioning 5/5 tokens",
                "painting 4/8 images, denoising 2/3 steps",
                "painting 8/8 images",
                "scoring 1/2 rewards",
                "scoring 2/2 rewards",
                "updating 0/3 micro-batches, scoring 1/2 steps",
                "updating 3/3 micro-batches",
            ],
        ),
        (
            umm2,
            [
                "captioning 5/5 tokens",
                "painting 4/8 images, drawing 9/144 tokens",
                "painting 8/8 images",
                "scoring 2/2 rewards",
                "updating 3/3 micro-batches",
            ],
        ),
    ],
)
def test_each_phase_of_a_step_is_shown_and_changes_no_bit(family, expected: list[str]):
    out = io.StringIO()
    with show_phases(Console(file=out)) as display:
        shown = one_step(*family())
        assert display.text() == ""
    output = without_times(out.getvalue())
    assert [line for line in expected if line not in output] == []
    assert all(torch.equal(a, b) for a, b in zip(shown, one_step(*family()), strict=True))


@pytest.mark.usefixtures("every_unit")
def test_a_run_shows_its_phases_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = replace(config(1), use_bf16=False)
    train(
        build_model(),
        WeightedSum({"likeness": (1.0, likeness)}),
        SceneImages(),
        settings,
        tmp_path,
        {},
    )
    output = without_times(capsys.readouterr().out)
    assert "captioning 5/5 tokens" in output and output[-1].startswith("Unified-GRPO 1/1  reward")


def test_a_quick_run_says_no_more_than_its_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = replace(config(1), use_bf16=False)
    train(
        build_model(),
        WeightedSum({"likeness": (1.0, likeness)}),
        SceneImages(),
        settings,
        tmp_path,
        {},
    )
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "Unified-GRPO 1/1"
    ]


@pytest.mark.usefixtures("every_unit")
def test_loading_shows_which_part(monkeypatch: pytest.MonkeyPatch):
    out, phases = io.StringIO(), []
    with show_phases(Console(file=out)) as display:
        begin = display.begin
        monkeypatch.setattr(
            display, "begin", lambda name, *rest: phases.append(name) or begin(name, *rest)
        )
        load_model("tiny")
        assert display.text() == ""
    parts = [
        "Qwen2_5_VLForConditionalGeneration",
        "SD3Transformer2DModel",
        "Projector",
        "AutoencoderKL",
    ]
    assert [name for name in phases if name != "loading weights"] == [
        f"loading {part}" for part in parts
    ]
    assert re.search(
        r"^loading Qwen2_5_VL\w+, loading weights \d+/\d+$", without_times(out.getvalue())[0]
    )
