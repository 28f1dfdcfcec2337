"""Supervised training of the tiny models: losses fall, and a resumed run is the uninterrupted
one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.utils.holder import held_elsewhere
from uae.stages.fit import FitSettings, fit
from uae.utils.checkpoint import load_latest
from uae.utils.metrics import read_metrics
from uae.utils.optim import Schedule
from uae.utils.processes import in_processes
from uae.world.build.captioner import CaptionerTask
from uae.world.build.vae import VaeTask
from uae.world.build.vision import NOTHING, VisionTask, cell_labels
from uae.world.scene import Object, Scene, Word


class Line:
    """Fit y = 3x; its draws come from the global generator, which ``fit`` seeds by step."""

    name = "line"

    def __init__(self, num_steps: int = 60, num_parallel: int = 1) -> None:
        self.fit_settings = FitSettings(
            num_steps, 8, 0.1, num_parallel=num_parallel, warmup_steps=5, ema_decay=0.9
        )
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1)
        self.modules: dict[str, nn.Module] = {"model": self.model}

    def loss(self, step: int):
        x = torch.randn(8, 1, generator=torch.Generator().manual_seed(step))
        return (self.model(x) - 3 * x).square().mean(), {}

    def evaluate(self):
        return {"slope": self.model.weight.item()}

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    def after_step(self, step: int) -> None:
        pass


def weights(task) -> list[torch.Tensor]:
    return [p.clone() for module in task.modules.values() for p in module.parameters()]


def test_it_learns_and_measures_the_average(tmp_path: Path):
    task = Line(200)
    assert fit(task, tmp_path, save_every=50, eval_every=100)["slope"] == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("num_parallel", [1, 2])
def test_interrupted_equals_uninterrupted(tmp_path: Path, num_parallel: int):
    whole = Line(30, num_parallel)
    fit(whole, tmp_path / "whole", save_every=10, eval_every=15)
    broken = Line(30, num_parallel)
    normal_loss = broken.loss

    def stops(step: int):
        if step == 24 * num_parallel:
            raise KeyboardInterrupt
        return normal_loss(step)

    broken.loss = stops  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fit(broken, tmp_path / "parts", save_every=10, eval_every=15)
    resumed = Line(30, num_parallel)
    fit(resumed, tmp_path / "parts", save_every=10, eval_every=15)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


@pytest.mark.parametrize("part", ["evaluate", "export"])
def test_a_measurement_that_fails_is_made_again(tmp_path: Path, part: str):
    """No step is lost or made twice: weights, log and export are those of a run that was not
    disturbed."""

    class Exported(Line):
        def export(self, folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self.model.state_dict(), folder / "model.pt")

    def log(folder: Path) -> list[dict]:
        return [
            {k: v for k, v in row.items() if "time" not in k}
            for row in read_metrics(folder / "metrics.jsonl")
        ]

    def fails(*arguments):
        raise OSError("disk full")

    whole, broken, resumed = Exported(30), Exported(30), Exported(30)
    fit(whole, tmp_path / "whole", save_every=10, eval_every=10)
    normal_loss = broken.loss

    def breaks_later(number: int):
        if number == 12:
            setattr(broken, part, fails)
        return normal_loss(number)

    broken.loss = breaks_later  # type: ignore[method-assign]
    with pytest.raises(OSError, match="disk full"):
        fit(broken, tmp_path / "parts", save_every=10, eval_every=10)
    checkpoint = load_latest(tmp_path / "parts/checkpoints")
    assert checkpoint is not None and checkpoint.step == 10
    fit(resumed, tmp_path / "parts", save_every=10, eval_every=10)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert log(tmp_path / "whole") == log(tmp_path / "parts")
    first, second = (torch.load(tmp_path / name / "export/model.pt") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_short_run_exports_what_it_learnt(tmp_path: Path):
    """By hand: of four updates the decays are 1/10, 2/11, 3/12, 4/13, so 0.14 % of the start is
    left."""
    trace = []

    class Watched(Line):
        def after_step(self, step: int) -> None:
            trace.append(self.model.weight.item())

        def evaluate(self):
            return {"slope": self.model.weight.item()}

    task = Watched(4)
    average = task.model.weight.item()
    measured = fit(task, tmp_path)
    for weight, decay in zip(trace, (1 / 10, 2 / 11, 3 / 12, 4 / 13), strict=True):
        average = decay * average + (1 - decay) * weight
    assert measured["slope"] == pytest.approx(average, rel=1e-5)


@pytest.mark.parametrize("number", [1, 3])
def test_as_many_checkpoints_stay_as_are_asked_for(tmp_path: Path, number: int):
    fit(Line(30), tmp_path, save_every=5, keep_checkpoints=number)
    assert len(list((tmp_path / "checkpoints").glob("step_*"))) == number


def test_other_settings_are_refused(tmp_path: Path):
    fit(Line(10), tmp_path, save_every=5)
    changed = Line(10)
    changed.fit_settings = replace(changed.fit_settings, learning_rate=0.5)
    with pytest.raises(ValueError, match="learning_rate"):
        fit(changed, tmp_path)


def test_a_run_in_use_is_refused(tmp_path: Path):
    with held_elsewhere(tmp_path) as other:
        with pytest.raises(ValueError, match=rf"in use by process {other.pid} .*another folder"):
            fit(Line(10), tmp_path)
        assert not (tmp_path / "checkpoints").exists()
    fit(Line(10), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "export", "metrics.jsonl"}


def test_a_gradient_that_is_not_finite_stops_and_says_where(tmp_path: Path):
    task = Line(10)
    task.loss = lambda step: (task.model.weight.sum() * float("nan"), {})  # type: ignore
    with pytest.raises(ValueError, match=r"finite gradient.*step 0 of line, of loss nan"):
        fit(task, tmp_path)
    assert task.model.weight.isfinite().all()


def test_learning_rate_by_hand():
    schedule = Schedule(110, 10, "cosine")
    assert schedule.factor(0) == pytest.approx(0.1)
    assert schedule.factor(9) == pytest.approx(1.0)
    assert schedule.factor(60) == pytest.approx(0.02 + 0.98 * 0.5, abs=1e-6)


def test_cell_labels_by_hand():
    scene = Scene(
        "gray",
        (Object(0, "ring", "blue", "small"), Object(8, "circle", "red", "large")),
        Word(4, "sun"),
    )
    labels = cell_labels([scene])
    assert labels["content"][0].tolist() == [6, 0, 0, 0, 7, 0, 0, 0, 1]
    assert labels["color"][0].tolist() == [2, *[NOTHING] * 7, 0]
    assert labels["size"][0].tolist() == [0, *[NOTHING] * 7, 2]
    assert labels["word"][0, 4] == 0 and labels["word"][0, 0] == NOTHING
    assert labels["background"].unique().tolist() == [1]


@pytest.mark.slow
def test_the_real_tasks_learn_and_resume(tmp_path: Path):
    """A few steps of the VAE, the vision tower, and the captioner that starts from it."""
    for name, make in (
        ("vae", VaeTask),
        ("vision", VisionTask),
        ("captioner", lambda: CaptionerTask(tmp_path / "vision/export")),
    ):

        def short(make=make):
            task = make()
            task.fit_settings = replace(
                task.fit_settings, num_steps=6, batch_size=4, warmup_steps=1
            )
            task.evaluate = dict
            return task

        whole = short()
        first = whole.loss(0)[0].item()
        fit(whole, tmp_path / name, save_every=3)
        assert whole.loss(0)[0].item() < first, name
        resumed = short()
        (tmp_path / name / "checkpoints/latest").write_text("step_00000003\n")
        for file in (tmp_path / name / "checkpoints/step_00000006").iterdir():
            file.unlink()
        (tmp_path / name / "checkpoints/step_00000006").rmdir()
        fit(resumed, tmp_path / name, save_every=3)
        assert all(
            torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True)
        ), name


def _fit_line(folder: str) -> None:
    fit(Line(20, num_parallel=2), Path(folder), save_every=10, eval_every=20)


def test_two_processes_give_what_one_gives(tmp_path: Path):
    _fit_line(str(tmp_path / "one"))
    in_processes(2, _fit_line, str(tmp_path / "two"))
    one, two = (load_latest(tmp_path / name / "checkpoints") for name in ("one", "two"))
    assert one is not None and two is not None and one.step == two.step == 20
    assert torch.equal(one.weights["model"]["weight"], two.weights["model"]["weight"])
    assert torch.equal(
        one.weights["average"]["model.weight"], two.weights["average"]["model.weight"]
    )
