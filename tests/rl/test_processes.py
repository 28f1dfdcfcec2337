"""Two processes train what one trains: the same losses, metrics and weights, but for rounding."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from tests.rl.kinds import KINDS, run
from tests.torchrun import printed_by, torchrun
from uae.utils.checkpoint import Checkpoint, load_latest
from uae.utils.metrics import read_metrics

SCRIPT, STEPS = "tests.rl.kinds", 3
SPREAD = ("captions", "a window, fully", "awm", "captions and image tokens", "both at once")


def check_same(one: Path, two: Path, num_steps: int = STEPS) -> None:
    """Metrics and weights of two runs."""
    lines, others = (read_metrics(folder / "metrics.jsonl") for folder in (one, two))
    assert len(lines) == len(others) == num_steps
    for line, other in zip(lines, others, strict=True):
        assert line.keys() == other.keys()
        for name in line:
            if not name.startswith("time/"):
                assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-5), name
    first, second = (last(folder, num_steps).weights for folder in (one, two))
    for part, weights in first.items():
        apart = torch.cat([(v - second[part][n]).abs().flatten() for n, v in weights.items()])
        # where a gradient is nothing but rounding, AdamW makes steps of it as of any other
        assert apart.mean() < 1e-6 and (apart > 1e-5).float().mean() < 1e-3, part


def last(folder: Path, num_steps: int = STEPS) -> Checkpoint:
    checkpoint = load_latest(folder / "checkpoints")
    assert checkpoint is not None and checkpoint.step == num_steps
    return checkpoint


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_take_the_steps_of_one(tmp_path: Path):
    printed = printed_by(torchrun(SCRIPT, str(tmp_path / "two"), str(STEPS), "nothing", *KINDS))
    assert printed.count("processes 2") == 2
    torch.set_num_threads(1)
    for kind in KINDS:
        run(kind, "cpu", tmp_path / "one" / kind, STEPS)
        check_same(tmp_path / "one" / kind, tmp_path / "two" / kind)
    printed_by(torchrun(SCRIPT, str(tmp_path / "spread"), str(STEPS), "all", *SPREAD))
    for kind in SPREAD:
        check_same(tmp_path / "two" / kind, tmp_path / "spread" / kind)
        checkpoint = last(tmp_path / "spread" / kind).path
        assert len(list((checkpoint / "parts").glob("*.safetensors"))) == 2


def test_each_kind_of_run_goes_on_with_what_another_began(tmp_path: Path):
    kind, folder = "captions", tmp_path / "in turn"
    run(kind, "cpu", folder / kind, 1)
    printed_by(torchrun(SCRIPT, str(folder), "2", "nothing", kind))
    printed_by(torchrun(SCRIPT, str(folder), "3", "learning", kind))
    run(kind, "cpu", folder / kind, 4)
    run(kind, "cpu", tmp_path / "whole" / kind, 4)
    check_same(tmp_path / "whole" / kind, folder / kind, 4)


@pytest.mark.slow
def test_two_machines_are_two_processes(tmp_path: Path):
    kind = "captions"
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    meeting = ("--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}", "--rdzv_id", "2")
    launcher = ("--nnodes", "2", "--nproc_per_node", "1", *meeting)
    arguments = SCRIPT, str(tmp_path / "two"), str(STEPS), "nothing", kind
    both = [torchrun(*arguments, launcher=launcher) for _ in range(2)]
    assert all("processes 2" in printed_by(each) for each in both)
    run(kind, "cpu", tmp_path / "one" / kind, STEPS)
    check_same(tmp_path / "one" / kind, tmp_path / "two" / kind)
