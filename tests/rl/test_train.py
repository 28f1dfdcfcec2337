"""The loop: it learns, it resumes bit for bit after SIGKILL, and it stops safely when something is
wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from tests.rl.tiny_run import build_model, config, reward
from tests.utils.holder import held_elsewhere
from uae.config import DecodeSettings
from uae.rewards.base import RewardError, WeightedSum
from uae.rl.auxiliary import Auxiliary
from uae.rl.learning import Learning
from uae.rl.train import train, train_step
from uae.utils.checkpoint import load_latest, save_checkpoint
from uae.utils.lock import FILE_NAME
from uae.utils.metrics import read_metrics
from uae.world.data import SceneImages, ScenePrompts, SceneQuestions

SCRIPT = Path(__file__).with_name("tiny_run.py")
ROOT = Path(__file__).parents[2]


def small_run(folder: Path, num_steps: int) -> list[str]:
    """Random weights, a few tokens."""
    return [str(SCRIPT), str(folder), str(num_steps)]


def shipped_run(folder: Path, num_steps: int) -> list[str]:
    """The tiny preset itself (bf16, two threads) with fewer captions a step."""
    code = "import torch; torch.set_num_threads(2); from uae.cli import main; main()"
    fewer = ["--train.images-per-step", "2", "--train.group-size", "4", "--train.save-every", "1"]
    return [
        "-c",
        code,
        "train",
        "tiny",
        "--run-dir",
        str(folder),
        "--train.num-steps",
        str(num_steps),
        *fewer,
    ]


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(arguments: list[str]) -> None:
    process = start(arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def kill_after_step(arguments: list[str], folder: Path, step: int) -> None:
    """SIGKILL as soon as the log shows ``step``: before, in or after the checkpoint that
    follows."""
    process = start(arguments)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        log = folder / "metrics.jsonl"
        if log.exists() and f'"step": {step},' in log.read_text():
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def without_times(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "num_steps", "fatal"), [(small_run, 6, (0, 1, 2, 4)), (shipped_run, 3, (0, 1))]
)
def test_killed_and_resumed_equals_uninterrupted(
    run, num_steps: int, fatal: tuple[int, ...], tmp_path: Path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(run(whole, num_steps))
    for step in fatal:
        kill_after_step(run(killed, num_steps), killed, step)
    finish(run(killed, num_steps))
    first, second = load_latest(whole / "checkpoints"), load_latest(killed / "checkpoints")
    assert first is not None and second is not None and first.step == second.step == num_steps
    for name, value in first.weights["policy"].items():
        assert torch.equal(value, second.weights["policy"][name]), name
    for slot, moments in first.state["optimizer"]["state"].items():
        for key, value in moments.items():
            assert torch.equal(
                torch.as_tensor(value),
                torch.as_tensor(second.state["optimizer"]["state"][slot][key]),
            )
    assert without_times(whole) == without_times(killed)


@pytest.fixture(scope="module")
def first_step() -> dict[str, float]:
    """The metrics of a first step in fp32, with all that can stand beside learning to caption."""
    torch.manual_seed(0)
    model, settings = build_model(), config(1, anchor_coef=1.0, text_anchor_coef=1.0)
    settings = replace(settings, use_bf16=False, questions_per_step=2, texts_per_step=2)
    beside = Auxiliary(questions=SceneQuestions(), texts=ScenePrompts())
    optimizer = torch.optim.SGD(list(model.encoder.named_trainable_parameters().values()), lr=0.0)
    rewards = {"images": reward()}
    batch = SceneImages().batch(0, 2)
    return train_step(model, rewards, batch, settings, Learning(optimizer), 0, beside)


def test_the_policy_is_on_its_own_rollout_in_the_first_update(first_step: dict[str, float]):
    assert first_step["rl/ratio_max"] == 1.0
    assert first_step["rl/log_prob_gap"] < 1e-5
    assert first_step["rl/kl"] == pytest.approx(0.0, abs=1e-6)
    assert first_step["rl/grad_norm"] > 0


def test_times_add_up_and_throughput_is_that_of_the_step(first_step: dict[str, float]):
    step_sec = first_step["time/rollout"] + first_step["time/reward"] + first_step["time/update"]
    assert first_step["time/step"] == pytest.approx(step_sec)
    assert first_step["time/tokens_per_sec"] == pytest.approx(
        6 * first_step["caption/tokens"] / step_sec
    )  # P·G = 6
    assert first_step["time/images_per_sec"] == pytest.approx(6 / step_sec)


def test_the_docs_explain_what_is_logged(first_step: dict[str, float]):
    explained = re.findall(
        r"`((?:reward|rl|caption|image|time)/[a-z_]+)`", (ROOT / "docs/metrics.md").read_text()
    )
    of_other_runs = {"reward/clip", "reward/fixed_captions", "image/guidance_gap", "time/step_sec"}
    assert first_step.keys() - {"reward/likeness"} == set(explained) - of_other_runs


def test_micro_batches_change_nothing():
    def weights(micro_batch: int) -> list[torch.Tensor]:
        model, settings = build_model(), replace(config(1), use_bf16=False, micro_batch=micro_batch)
        parameters = list(model.encoder.named_trainable_parameters().values())
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        rewards, batch = {"images": reward()}, SceneImages().batch(0, 2)
        train_step(model, rewards, batch, settings, Learning(optimizer), 0)
        return parameters

    for whole, parts in zip(weights(6), weights(2), strict=True):
        torch.testing.assert_close(whole, parts, atol=2e-6, rtol=1e-4)


def test_what_is_rewarded_is_learnt(tmp_path: Path):
    """Reward the word 'red': its share of the captions rises; only the language model moved."""

    def says_red(sources, captions, reconstructions):
        return torch.tensor([text.split().count("red") / 5 for text in captions])

    model = build_model()
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    settings = config(
        12, images_per_step=2, group_size=16, learning_rate=3e-3, save_every=50, probe_every=50
    )
    train(model, WeightedSum({"red": (1.0, says_red)}), SceneImages(), settings, tmp_path, {})
    rewards = [row["reward/total"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15, rewards
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


def test_a_nan_reward_stops_the_run_and_keeps_what_was_done(tmp_path: Path):
    calls = []

    def breaks_at_third(sources, captions, reconstructions):
        calls.append(1)
        value = (
            float("nan") if len(calls) == 5 else float(len(calls))
        )  # two of the calls are the probe's
        return torch.arange(len(reconstructions)) * 0.01 + value

    settings = config(6, save_every=50, probe_every=50)
    with pytest.raises(RewardError, match=r"fragile.*finite"):
        train(
            build_model(),
            WeightedSum({"fragile": (1.0, breaks_at_third)}),
            SceneImages(),
            settings,
            tmp_path,
            {},
        )
    checkpoint = load_latest(tmp_path / "checkpoints")
    assert (
        checkpoint is not None
        and checkpoint.step == len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    )


def test_resume_with_other_settings_is_refused(tmp_path: Path):
    train(build_model(), reward(), SceneImages(), config(2), tmp_path, {"model": "a"})
    with pytest.raises(ValueError, match=r"learning_rate.*0\.001.*0\.5"):
        train(
            build_model(),
            reward(),
            SceneImages(),
            config(3, learning_rate=0.5),
            tmp_path,
            {"model": "a"},
        )
    with pytest.raises(ValueError, match="model"):
        train(build_model(), reward(), SceneImages(), config(3), tmp_path, {"model": "b"})
    smaller = config(
        3, micro_batch=1, decoding=DecodeSettings(num_steps=1, micro_batch=1)
    )  # after running out of memory
    train(build_model(), reward(), SceneImages(), smaller, tmp_path, {"model": "a"})


def test_as_many_checkpoints_stay_as_are_asked_for(tmp_path: Path):
    """Two by default; a resumed run may keep another number."""

    def kept(num_steps: int, **changes) -> list[int]:
        settings = config(num_steps, save_every=1, probe_every=100, **changes)
        train(build_model(), reward(), SceneImages(), settings, tmp_path, {})
        return sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step_*"))

    assert kept(3) == [2, 3]
    assert kept(5, keep_checkpoints=3) == [3, 4, 5]
    assert kept(6, keep_checkpoints=1) == [6]


def test_a_run_from_before_there_was_a_setting_goes_on(tmp_path: Path):
    """Its checkpoint does not say how many are kept."""
    train(build_model(), reward(), SceneImages(), config(2), tmp_path, {"model": "a"})
    checkpoint = load_latest(tmp_path / "checkpoints")
    assert checkpoint is not None
    for later in ("keep_checkpoints", "max_grad_norm"):
        del checkpoint.state["settings"]["train"][later]
    save_checkpoint(tmp_path / "checkpoints", 2, checkpoint.weights, checkpoint.state)
    with pytest.raises(ValueError, match=r"max_grad_norm: was not set, now 2"):
        train(
            build_model(),
            reward(),
            SceneImages(),
            config(3, max_grad_norm=2.0),
            tmp_path,
            {"model": "a"},
        )
    train(build_model(), reward(), SceneImages(), config(3), tmp_path, {"model": "a"})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3


def test_a_run_in_use_is_refused_and_free_again_after_a_kill(tmp_path: Path):
    with held_elsewhere(tmp_path) as other:
        with pytest.raises(ValueError, match=rf"in use by process {other.pid} .*another folder"):
            train(build_model(), reward(), SceneImages(), config(1), tmp_path, {})
        assert {path.name for path in tmp_path.iterdir()} == {FILE_NAME}
    train(build_model(), reward(), SceneImages(), config(1), tmp_path, {})
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "probe.json",
    }


def test_a_longer_run_may_continue_with_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    writer = Mock()
    monkeypatch.setattr("uae.utils.metrics._tensorboard_writer", writer)
    train(build_model(), reward(), SceneImages(), config(2), tmp_path, {})
    writer.assert_not_called()
    train(build_model(), reward(), SceneImages(), config(3, tensorboard=True), tmp_path, {})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    writer.assert_called_once_with(tmp_path, 1)
    writer().add_scalar.assert_any_call("reward/total", rows[2]["reward/total"], 2)


def test_the_probes_captions_stay_the_same(tmp_path: Path):
    train(build_model(), reward(), SceneImages(), config(2), tmp_path, {})
    texts = json.loads((tmp_path / "probe.json").read_text())
    train(build_model(), reward(), SceneImages(), config(4), tmp_path, {})
    assert json.loads((tmp_path / "probe.json").read_text()) == texts
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "reward/fixed_captions" in row] == [0, 1, 3]


def test_the_learning_rate_warms_up_and_falls(tmp_path: Path):
    def rates(folder: str, **changes) -> list[float]:
        settings = config(4, probe_every=100, **changes)
        train(
            build_model(), reward(), SceneImages(), settings, tmp_path / folder, {"model": "test"}
        )
        return [
            line["rl/lr"] / settings.learning_rate
            for line in read_metrics(tmp_path / folder / "metrics.jsonl")
        ]

    assert rates("constant", warmup_steps=2) == pytest.approx([0.5, 1, 1, 1])
    assert rates("linear", lr_scheduler_type="linear") == pytest.approx([1, 0.75, 0.5, 0.25])


def test_a_run_of_another_length_has_the_rates_of_that_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each step's rate is what the settings of now say of it, in both groups."""
    noisy = {
        "decoding": DecodeSettings(num_steps=2, sampler="sde", window_size=1),
        "decoder_learning_rate": 1e-4,
    }
    decoder_rates = []

    def rates(num_steps: int, until: int | None = None, **changes) -> list[float]:
        model, settings = (
            build_model(),
            config(num_steps, lr_scheduler_type="linear", **(noisy | changes)),
        )
        model.begin_training(0, captions=True, decoding=settings.decoding)
        step = torch.optim.AdamW.step

        def watched(self, *arguments):
            decoder_rates.append(self.param_groups[1]["lr"])
            return step(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", watched)
            train(
                model, reward(), SceneImages(), settings, tmp_path, {"model": "test"}, until=until
            )
        return [line["rl/lr"] / 1e-3 for line in read_metrics(tmp_path / "metrics.jsonl")]

    assert rates(2) == pytest.approx([1, 1 / 2])
    assert rates(8, until=4) == pytest.approx([1, 1 / 2, 6 / 8, 5 / 8])  # longer
    assert rates(5) == pytest.approx([1, 1 / 2, 6 / 8, 5 / 8, 1 / 5])  # shorter
    assert decoder_rates == pytest.approx(
        [1e-4 * factor for factor in (1, 1 / 2, 6 / 8, 5 / 8, 1 / 5)]
    )
    with pytest.raises(ValueError, match=r"num-steps: expected at least 5.*got 4"):
        rates(4)


def test_a_longer_run_that_warmed_up_stays_at_its_rate(tmp_path: Path):
    for num_steps in (2, 4):
        settings = config(num_steps, warmup_steps=2, probe_every=100)
        train(build_model(), reward(), SceneImages(), settings, tmp_path, {"model": "test"})
    rates = [
        line["rl/lr"] / settings.learning_rate for line in read_metrics(tmp_path / "metrics.jsonl")
    ]
    assert rates == pytest.approx([0.5, 1, 1, 1])
