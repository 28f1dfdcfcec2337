"""The metrics file of a resumed run equals an uninterrupted one; timers add up; progress speaks
without a terminal."""

import contextlib
import errno
import io
import json
import os
import time

import pytest
from rich.console import Console

from uae.utils import metrics
from uae.utils.metrics import MetricsLogger, PhaseTimer, TrainProgress, read_metrics


def log_steps(logger, steps):
    for step in steps:
        logger.log(step, {"reward/clip": step / 10, "rl/kl": float("nan")})
    logger.close()


def test_one_line_of_strict_json_per_step(tmp_path):
    logger = MetricsLogger(tmp_path / "run")
    logger.log(
        1,
        {
            "reward/clip": 0.5,
            "rl/kl": float("nan"),
            "rl/ratio_max": float("inf"),
            "caption/tokens": 7,
        },
    )
    line = (tmp_path / "run" / "metrics.jsonl").read_text()  # readable before closing
    assert (
        line == '{"step": 1, "reward/clip": 0.5, "rl/kl": null, "rl/ratio_max": null, '
        '"caption/tokens": 7}\n'
    )
    logger.sync()
    with pytest.raises(AssertionError, match="step 1 logged after step 1"):
        logger.log(1, {})
    logger.close()


def test_resumed_file_equals_uninterrupted(tmp_path):
    log_steps(MetricsLogger(tmp_path / "whole"), range(1, 8))
    log_steps(MetricsLogger(tmp_path / "cut"), range(1, 6))
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "reward/cl')  # killed within a line
    log_steps(MetricsLogger(tmp_path / "cut", last_step=3), range(4, 8))
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (
        tmp_path / "whole/metrics.jsonl"
    ).read_bytes()
    assert [row["step"] for row in read_metrics(tmp_path / "cut/metrics.jsonl")] == list(
        range(1, 8)
    )


def test_half_a_line_is_dropped_even_when_its_step_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    log_steps(MetricsLogger(tmp_path, last_step=2), [3])
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]


def test_a_new_run_starts_afresh(tmp_path):
    log_steps(MetricsLogger(tmp_path), [1, 2])
    log_steps(MetricsLogger(tmp_path), [1])
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.parametrize("failure", ["error", "short write"])
def test_full_disk_is_explained(tmp_path, monkeypatch, failure):
    def write(descriptor, data):
        if failure == "error":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data) - 1

    logger = MetricsLogger(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(metrics.os, "write", write)
        with pytest.raises(
            OSError, match=r"could not write metrics\.jsonl to .*No space left on device"
        ):
            logger.log(1, {})
    logger.close()


def test_missing_tensorboard_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'unified-autoencoder\[track\]'"):
        MetricsLogger(tmp_path, use_tensorboard=True)


def test_tensorboard_gets_the_numbers(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def add_scalar(self, *arguments):
            calls.append(arguments)

        def flush(self):
            calls.append("flushed")

        def close(self):
            calls.append("closed")

    monkeypatch.setattr(metrics, "_tensorboard_writer", lambda directory, last_step: Writer())
    logger = MetricsLogger(tmp_path, use_tensorboard=True)
    logger.log(3, {"reward/clip": 0.5, "caption/example": "a red dot"})
    logger.sync()
    logger.close()
    assert calls == [("reward/clip", 0.5, 3), "flushed", "closed"]


def test_tensorboard_reads_a_resumed_run_as_one(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for last_step, steps in (
        (-1, range(4)),
        (1, range(2, 5)),
    ):  # steps 2 and 3 come after the checkpoint: again
        logger = MetricsLogger(tmp_path, last_step=last_step, use_tensorboard=True)
        log_steps(logger, steps)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    values = [(event.step, event.value) for event in events.Scalars("reward/clip")]
    assert values == [(step, pytest.approx(step / 10)) for step in range(5)]


def test_phases_add_up_and_reset():
    timer = PhaseTimer()
    for _ in range(2):
        with timer("rollout"):
            time.sleep(0.02)
    with contextlib.suppress(KeyError), timer("reward"):
        time.sleep(0.01)
        raise KeyError
    seconds = timer.pop()
    assert list(seconds) == ["time/rollout", "time/reward"]
    assert 0.04 <= seconds["time/rollout"] < 0.5
    assert 0.01 <= seconds["time/reward"] < 0.5
    assert timer.pop() == {}


def test_progress_writes_plain_lines_without_a_terminal(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with TrainProgress(
        "train", total=12, start=2, every_sec=15.0, console=Console(file=out)
    ) as progress:
        for done in range(3, 13):
            clock[0] += 10
            progress.update(done, reward=done / 10)
    assert out.getvalue().splitlines() == [
        "train 3/12  reward 0.300  10.0 s/step  ETA 1m30s",
        "train 5/12  reward 0.500  10.0 s/step  ETA 1m10s",
        "train 7/12  reward 0.700  10.0 s/step  ETA 0m50s",
        "train 9/12  reward 0.900  10.0 s/step  ETA 0m30s",
        "train 11/12  reward 1.100  10.0 s/step  ETA 0m10s",
        "train 12/12  reward 1.200  10.0 s/step  ETA 0m00s",
    ]


def test_progress_draws_a_bar_on_a_terminal(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with TrainProgress("train", total=5000, console=console) as progress:
        clock[0] = 2.0
        progress.update(1, reward=0.25)
    shown = out.getvalue()
    for part in ("train", "1/5000", "reward 0.250", "2.0 s/step", "ETA 2h46m"):
        assert part in shown


def test_lines_are_appended_by_one_write(tmp_path, monkeypatch):
    """A reader, or a kill, between two writes never sees part of a line."""
    calls, real = [], os.write
    monkeypatch.setattr(metrics.os, "write", lambda fd, data: calls.append(data) or real(fd, data))
    log_steps(MetricsLogger(tmp_path), [1, 2])
    assert [json.loads(data)["step"] for data in calls] == [1, 2]
    assert all(data.endswith(b"\n") for data in calls)
