"""What a run writes down and shows: ``metrics.jsonl``, phase times, and a progress display.

Each step is one line of strict JSON, written in one call. On resuming, lines after the resumed step
are dropped, so the file equals that of a run that was never interrupted. Everything that may differ
between two identical runs (seconds, throughput) is named ``time/...``. The names are explained in
``docs/metrics.md``.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from uae.utils.files import disk_error, json_ready
from uae.utils.progress import clock, show_phases


class MetricsLogger:
    """Appends one line per step to ``directory/metrics.jsonl``; one process of a run holds one."""

    def __init__(
        self, directory: Path | str, last_step: int = -1, use_tensorboard: bool = False
    ) -> None:
        """``last_step`` is the step the resumed checkpoint was written after; -1 starts the file
        afresh."""
        self.path = Path(directory) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _truncate_after(self.path, last_step)
        self._last_step = last_step
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._writer = _tensorboard_writer(self.path.parent, last_step) if use_tensorboard else None

    def log(self, step: int, metrics: Mapping[str, float | int | str]) -> None:
        """Write the metrics of ``step``; nan and inf become null."""
        assert step > self._last_step, f"step {step} logged after step {self._last_step}"
        line = json.dumps(json_ready({"step": step, **metrics}), allow_nan=False).encode() + b"\n"
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise disk_error(self.path.name, self.path.parent, error) from error
        self._last_step = step
        if self._writer is not None:
            for name, value in metrics.items():
                if not isinstance(value, str):
                    self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        """Flush to the disk; call it before a checkpoint, which must not be ahead of its
        metrics."""
        os.fsync(self._descriptor)
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        os.close(self._descriptor)
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path | str) -> list[dict]:
    """The lines of a ``metrics.jsonl``; nulls come back as None."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


class PhaseTimer:
    """Seconds per phase of a step: ``with timer("rollout"): ...``, then ``timer.pop()`` once a
    step."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = _now()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + _now() - start

    def pop(self) -> dict[str, float]:
        """``{"time/rollout": seconds, ...}`` since the last call; a phase entered twice is
        summed."""
        seconds, self._seconds = self._seconds, {}
        return {f"time/{phase}": value for phase, value in seconds.items()}


class TrainProgress:
    """A bar with live values and the time left, above what the current step is at; plain lines
    every ``every_sec`` where stdout is no terminal."""

    def __init__(
        self,
        label: str,
        total: int,
        start: int = 0,
        every_sec: float = 15.0,
        console: Console | None = None,
    ) -> None:
        self._label, self._total, self._start, self._every_sec = label, total, start, every_sec
        self._console = console or Console()
        self._began = time.monotonic()
        self._last_line = -float("inf")

    def __enter__(self) -> TrainProgress:
        self._context = show_phases(self._console)
        self._display = self._context.__enter__()
        self._bar = _bar(self._console) if self._display.is_live else None
        if self._bar:
            self._task = self._bar.add_task(
                self._label, total=self._total, completed=self._start, live=""
            )
            self._display.add_bar(self._bar)
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bar:
            self._display.remove_bar(self._bar)
        self._context.__exit__(*exception)

    def update(self, num_done: int, **live: float) -> None:
        """``num_done`` of ``total`` steps are finished; ``live`` values are shown by name."""
        seconds = (time.monotonic() - self._began) / max(num_done - self._start, 1)
        values = [f"{name} {value:.3f}" for name, value in live.items()]
        text = "  ".join(
            [*values, f"{seconds:.1f} s/step", f"ETA {clock(seconds * (self._total - num_done))}"]
        )
        if self._bar:
            self._bar.update(self._task, completed=num_done, live=text)
        elif num_done == self._total or time.monotonic() - self._last_line >= self._every_sec:
            self._last_line = time.monotonic()
            self._display.said_something()
            print(
                f"{self._label} {num_done}/{self._total}  {text}",
                file=self._console.file,
                flush=True,
            )


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[live]}"),
    )
    return Progress(*columns, console=console, auto_refresh=False)


def _truncate_after(path: Path, last_step: int) -> None:
    """Cut the file at the first line that is later than ``last_step`` or was half written."""
    if not path.exists():
        return
    keep = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or not _is_until(line, last_step):
            break
        keep += len(line)
    os.truncate(path, keep)


def _is_until(line: bytes, last_step: int) -> bool:
    try:
        return json.loads(line)["step"] <= last_step
    except (ValueError, KeyError, TypeError):
        return False


def check_tensorboard() -> None:
    """A ValueError that says what to do when TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise ValueError(
            "TensorBoard was asked for but is not installed: pip install "
            "'unified-autoencoder[track]', or turn it off"
        )


def _tensorboard_writer(directory: Path, last_step: int):
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory / "tensorboard"), purge_step=last_step + 1)


def _now() -> float:
    """Seconds, once the work queued on a GPU is done, so that it counts for the phase that queued
    it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
