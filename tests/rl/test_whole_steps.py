"""A step is whole or it was not: wherever it fails, the checkpoint holds exactly the steps that
were finished, and the run that goes on from there has the bits of one that was never disturbed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import uae.rl.train
import uae.utils.run
from tests.rl.tiny_run import SMALL_IMAGES, build_model, build_small_janus, config, likeness
from uae.config import CaptionSettings, DecodeSettings
from uae.rewards.base import WeightedSum
from uae.rl.config import TrainConfig
from uae.rl.diagnostics import HeldOutAlarm
from uae.rl.run import PolicyRun, Probe
from uae.rl.train import train
from uae.utils.checkpoint import Checkpoint, load_latest
from uae.utils.metrics import MetricsLogger, TrainProgress, read_metrics
from uae.world.data import SceneImages

NOISY = DecodeSettings(num_steps=2, sampler="sde", window_size=1)
SMALL = {
    "images_per_step": 1,
    "group_size": 2,
    "captioning": CaptionSettings(max_new_tokens=3),
    "save_every": 100,
    "probe_every": 1,
    "ema_decay": 0.9,
    "ema_every": 1,
}
# Where a step can fail: what is called there, how often in a step, and at which of these calls it
# fails.
IN_A_STEP: dict[str, tuple[Any, str, int, int]] = {
    "data": (SceneImages, "batch", 1, 0),
    "rollout": (uae.rl.train, "roll_out", 1, 0),
    "reward": (WeightedSum, "__call__", 2, 0),  # the other call is the probe's
    "gradient": (torch.nn.utils, "clip_grad_norm_", 1, -1),
    "first update": (torch.optim.AdamW, "step", 1, 0),
    "last update": (torch.optim.AdamW, "step", 1, -1),
    "metrics": (uae.rl.train, "reward_metrics", 1, 0),
    "probe": (Probe, "measure", 1, 0),
    "probe's reward": (WeightedSum, "__call__", 2, 1),
    "log": (MetricsLogger, "log", 1, 0),
    "step counted": (PolicyRun, "finish_step", 1, 0),
}
# What follows a step: failing there, the step is finished.
AFTER_IT: dict[str, tuple[Any, str, int, int]] = {
    "regular save": (uae.utils.run, "save_checkpoint", 1, 0),
    "alarm": (HeldOutAlarm, "observe", 1, 0),
    "display": (TrainProgress, "update", 1, 0),
}


class Injected(RuntimeError):
    """What no part of the code expects."""


def umm1() -> Any:
    model = build_model()
    model.begin_training(2, captions=True, decoding=NOISY)
    return model


def umm2() -> Any:
    model = build_small_janus()
    model.begin_training(2, captions=True, decoding=DecodeSettings())
    return model


def run(build: Any, folder: Path, settings: TrainConfig) -> None:
    reward = WeightedSum({"likeness": (1.0, likeness), "held_out": (0.0, noise)})
    train(build(), reward, SceneImages(), settings, folder, {"model": "test"})


def noise(sources, captions, reconstructions):
    """A held-out reward that draws from the global generator, whose state belongs to the step
    too."""
    return torch.rand(len(reconstructions))


def failing_at(call: int, function: Any, error: type[BaseException]) -> Any:
    """It fails once, after it has done its work."""
    calls = []

    def wrapped(*arguments, **named):
        result = function(*arguments, **named)
        calls.append(1)
        if len(calls) == call + 1:
            raise error("injected")
        return result

    return wrapped


def log(folder: Path) -> list[dict]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")} for row in rows
    ]


def latest(folder: Path) -> Checkpoint:
    checkpoint = load_latest(folder / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same_run(first: Path, second: Path) -> None:
    a, b = latest(first), latest(second)
    assert a.step == b.step
    assert same(a.weights, b.weights)
    assert same(a.state["optimizer"]["state"], b.state["optimizer"]["state"])
    assert same(a.state["rng"]["torch"], b.state["rng"]["torch"])
    assert log(first) == log(second)


UMM2 = pytest.param(umm2, marks=pytest.mark.slow)


@pytest.mark.parametrize("num_updates", [1, 2])
@pytest.mark.parametrize("build", [umm1, UMM2])
def test_wherever_it_fails(
    build, num_updates: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One attempt for each point: it finishes one step and fails in the next, or right after the
    one."""
    monkeypatch.setattr(uae.rl.train, "Probe", partial(Probe, num_images=2))
    decoding = NOISY if build is umm1 else SMALL_IMAGES
    settings = config(
        len(IN_A_STEP | AFTER_IT) + 1, **SMALL, decoding=decoding, num_updates=num_updates
    )
    for done, (name, (owner, function, per_step, which)) in enumerate(
        (IN_A_STEP | AFTER_IT).items(), 1
    ):
        calls = per_step * (num_updates if function in ("step", "clip_grad_norm_") else 1)
        error = KeyboardInterrupt if done % 2 else Injected
        fails = failing_at(
            which % calls + calls * (name in IN_A_STEP), getattr(owner, function), error
        )
        with monkeypatch.context() as patch:
            patch.setattr(owner, function, fails)
            with pytest.raises(error, match="injected"):
                run(
                    build,
                    tmp_path / "broken",
                    replace(settings, save_every=1 if name == "regular save" else 100),
                )
        assert latest(tmp_path / "broken").step == done, name
        assert [row["step"] for row in log(tmp_path / "broken")][:done] == list(range(done)), name
    run(build, tmp_path / "broken", settings)
    run(build, tmp_path / "whole", settings)
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


def test_a_disk_that_stays_full_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    settings = config(4, **SMALL, decoding=NOISY)
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLogger, "log", failing_at(1, MetricsLogger.log, Injected))
        with pytest.raises(Injected):
            run(umm1, tmp_path, settings)
    with monkeypatch.context() as patch:
        patch.setattr(uae.utils.run, "save_checkpoint", full)
        patch.setattr(MetricsLogger, "log", failing_at(1, MetricsLogger.log, Injected))
        with (
            pytest.warns(UserWarning, match="steps after 1 were not saved.*No space left"),
            pytest.raises(Injected),
        ):
            run(umm1, tmp_path, settings)
    assert latest(tmp_path).step == 1


def test_taking_back_that_is_itself_interrupted_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = config(4, **SMALL, decoding=NOISY)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", failing_at(1, torch.optim.AdamW.step, Injected))
        patch.setattr(
            uae.utils.run.Snapshot,
            "put_back",
            failing_at(0, lambda snapshot: None, KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            run(umm1, tmp_path, settings)
    assert load_latest(tmp_path / "checkpoints") is None


def test_a_failed_step_leaves_the_model_as_the_step_before_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So that the same model may be trained again in the same process; gradients of the failed step
    are gone too."""
    settings = config(2, **SMALL, decoding=NOISY, num_updates=2)
    model, reward = umm1(), WeightedSum({"likeness": (1.0, likeness), "held_out": (0.0, noise)})
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with monkeypatch.context() as patch:
        patch.setattr(uae.rl.train, "_backward", failing_at(3, uae.rl.train._backward, Injected))
        with pytest.raises(Injected):
            train(model, reward, SceneImages(), settings, tmp_path / "broken", {"model": "test"})
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name]) and parameter.grad is None, name
    torch.manual_seed(0)  # as the other process has it
    train(model, reward, SceneImages(), settings, tmp_path / "broken", {"model": "test"})
    torch.manual_seed(0)
    train(umm1(), reward, SceneImages(), settings, tmp_path / "whole", {"model": "test"})
    a, b = latest(tmp_path / "broken"), latest(tmp_path / "whole")
    assert same(a.weights, b.weights)
