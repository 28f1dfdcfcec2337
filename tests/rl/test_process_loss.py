"""What stops one of several processes stops all, with one line that says why; the run goes on from
there with the same bits."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.torchrun import printed_by, torchrun
from uae.utils.checkpoint import load_latest

STEPS = 6


def fails_at_the_fourth_step(sources, captions, reconstructions):
    """As a reward of the user's own that breaks on one machine."""
    count = fails_at_the_fourth_step.__dict__.setdefault("calls", [0])
    count[0] += 1
    if os.environ["RANK"] == "1" and count[0] == 4:
        raise OSError("the disk of the reward is gone")
    return reconstructions.mean((1, 2, 3))


def start(folder: Path, *options: str, steps: int = STEPS) -> subprocess.Popen[str]:
    """A run of the tiny model by two processes."""
    settings = {
        "num-steps": steps,
        "images-per-step": 2,
        "group-size": 2,
        "captioning.max-new-tokens": 4,
        "decoding.num-steps": 1,
        "questions-per-step": 2,
        "save-every": 2,
        "probe-every": 1000,
    }
    given = [f"--train.{name}={value}" for name, value in settings.items()]
    return torchrun("uae", "train", "tiny", "--run-dir", str(folder), *given, *options)


def process_of(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The one of this rank, once it has begun."""
    while launcher.poll() is None:
        for child in psutil.Process(launcher.pid).children():
            try:
                if child.environ().get("RANK") == str(rank):
                    return child
            except psutil.Error:
                continue
        time.sleep(0.05)
    raise AssertionError(launcher.communicate()[0])


def finished(folder: Path) -> dict[str, torch.Tensor]:
    """The weights after the last step."""
    checkpoint = load_latest(folder / "checkpoints")
    assert checkpoint is not None and checkpoint.step == STEPS
    return checkpoint.weights["policy"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("shard", "kills"), [("nothing", 2), ("all", 1)])
def test_kill_either_process_at_any_moment(tmp_path: Path, shard: str, kills: int):
    spread = f"--train.shard={shard}"
    printed_by(start(tmp_path / "whole", spread))
    draws = random.Random(0)
    for number in range(int(os.environ.get("UAE_KILLS", kills))):
        folder = tmp_path / str(number)
        run = start(folder, spread)
        victim = process_of(run, number % 2)
        log = folder / "metrics.jsonl"
        while not log.exists() and run.poll() is None:
            time.sleep(0.1)
        time.sleep(draws.uniform(0, 3))
        began = time.monotonic()
        if victim.is_running() and run.poll() is None:
            victim.send_signal(signal.SIGKILL)
            printed = run.communicate(timeout=60)[0]
            assert time.monotonic() - began < 60
            told = re.findall(r"^error: .*", printed, re.MULTILINE)
            assert told == [
                f"error: process {number % 2} of 2 died: it was killed, or its machine was lost"
            ]
        printed_by(start(folder, spread))
        expected = finished(tmp_path / "whole")
        for name, value in finished(folder).items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.slow
def test_a_reward_that_fails_in_one_stops_all_with_its_message(tmp_path: Path):
    reward = f"{__name__}:fails_at_the_fourth_step"
    run = start(tmp_path, "--rewards", reward, "1.0")
    printed = run.communicate(timeout=300)[0]
    assert run.returncode != 0
    assert re.findall(r"^error: .*", printed, re.MULTILINE) == [
        f"error: process 1 of 2 failed: reward {reward} raised OSError: the disk of the reward "
        "is gone"
    ]
    checkpoint = load_latest(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.step in (2, 3)  # whole steps


def test_fewer_groups_than_processes_are_refused(tmp_path: Path):
    run = start(tmp_path, "--train.images-per-step=1")
    printed = run.communicate(timeout=300)[0]
    (told,) = re.findall(r"^error: .*", printed, re.MULTILINE)  # whichever came to it first
    assert "train.images-per-step: expected at least 2" in told
    assert not (tmp_path / "checkpoints").exists()
