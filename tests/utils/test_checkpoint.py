"""Checkpoints come back bit for bit, and a kill, a full disk or a damaged file never costs the last
good one."""

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from uae.utils import checkpoint
from uae.utils.checkpoint import (
    capture_rng,
    check_same_config,
    defaults_of,
    find_damage,
    load_latest,
    restore_rng,
    save_checkpoint,
)
from uae.utils.files import atomic_write_json, atomic_write_text


def save(directory, step, keep_last=2, size=4):
    """A small checkpoint whose content tells its step."""
    weights = {"encoder_lora": {"w": torch.full((size,), float(step))}}
    return save_checkpoint(directory, step, weights, {"sampler": {"position": step}}, keep_last)


def assert_is(latest, step):
    assert latest is not None
    assert latest.step == step
    assert latest.state["sampler"]["position"] == step
    assert latest.weights["encoder_lora"]["w"][0] == step


def names(directory):
    return sorted(path.name for path in Path(directory).iterdir())


def in_child(function, *arguments):
    """Run in a process of its own, forked from a server without threads (a thread's lock would stay
    shut in a fork); its exit code, negative for a signal."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    child = context.Process(target=function, args=arguments)
    child.start()
    child.join()
    return child.exitcode


def train_some_steps(model, optimiser, scheduler, num_steps):
    for _ in range(num_steps):
        optimiser.zero_grad()
        draws = torch.rand(4, 3) + random.random() + np.random.rand()  # noqa: NPY002
        (model(draws) ** 2).mean().backward()
        optimiser.step()
        scheduler.step()


def new_run():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).bfloat16().float()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10)


def test_resumed_run_equals_uninterrupted(tmp_path):
    model, optimiser, scheduler = new_run()
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    train_some_steps(model, optimiser, scheduler, 3)
    state = {
        "optimiser": optimiser.state_dict(),
        "schedule": scheduler.state_dict(),
        "rng": capture_rng(data=generator),
    }
    save_checkpoint(tmp_path, 3, {"policy": model.state_dict()}, state)
    restore_rng(
        state["rng"], data=generator
    )  # the tests' run-time type checks draw from python's generator
    train_some_steps(model, optimiser, scheduler, 4)
    draw = torch.rand(5, generator=generator)

    resumed, optimiser, scheduler = new_run()
    latest = load_latest(tmp_path)
    resumed.load_state_dict(latest.weights["policy"])
    optimiser.load_state_dict(latest.state["optimiser"])
    scheduler.load_state_dict(latest.state["schedule"])
    generator = torch.Generator()
    restore_rng(latest.state["rng"], data=generator)
    train_some_steps(resumed, optimiser, scheduler, 4)
    assert torch.equal(resumed.weight, model.weight)
    assert torch.equal(resumed.bias, model.bias)
    assert torch.equal(torch.rand(5, generator=generator), draw)


def test_dtypes_and_shared_tensors_survive(tmp_path):
    weight = torch.randn(4, 3, dtype=torch.bfloat16)
    save_checkpoint(
        tmp_path, 1, {"llm": {"embed": weight, "head": weight, "t": weight.T}, "empty": {}}, {}
    )
    latest = load_latest(tmp_path)
    assert latest.weights["llm"]["embed"].dtype == torch.bfloat16
    assert latest.weights["empty"] == {}
    assert torch.equal(latest.weights["llm"]["head"], weight)
    assert torch.equal(latest.weights["llm"]["t"], weight.T)


def test_nothing_yet(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None


def test_keeps_the_last_and_points_at_the_newest(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep_last=2)
    assert names(tmp_path) == ["latest", "step_00000015", "step_00000020"]
    assert (tmp_path / "latest").read_text() == "step_00000020\n"
    assert_is(load_latest(tmp_path), 20)
    with pytest.raises(ValueError, match="keep_last must be at least 1"):
        save(tmp_path, 25, keep_last=0)


@pytest.mark.parametrize("name", ["encoder_lora.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_falls_back_when_the_newest_is_damaged(tmp_path, name, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with pytest.warns(UserWarning, match="skipping the damaged checkpoint .*step_00000002"):
        assert_is(load_latest(tmp_path), 1)


def test_pruning_beside_a_damaged_newer_one_keeps_the_good_one(tmp_path):
    save(tmp_path, 10)
    (save(tmp_path, 20) / "state.pt").unlink()
    save(tmp_path, 15, keep_last=1)  # resumed from 10, other save interval
    assert_is(load_latest(tmp_path), 15)


def test_refuses_to_start_over_when_all_are_damaged(tmp_path):
    (save(tmp_path, 1) / "state.pt").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match=r"state\.pt has 0 bytes, expected \d+"),
    ):
        load_latest(tmp_path)


def test_lost_or_broken_pointer_falls_back_to_the_newest(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "latest").write_bytes(b"\xff\xfe nonsense")
    assert_is(load_latest(tmp_path), 2)
    (tmp_path / "latest").unlink()
    assert_is(load_latest(tmp_path), 2)


def test_stale_temporary_folders_are_cleaned(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".tmp_step_00000002").mkdir()
    (tmp_path / ".tmp_step_00000002" / "state.pt").write_bytes(b"half")
    assert_is(load_latest(tmp_path), 1)
    assert names(tmp_path) == ["latest", "step_00000001"]


def save_and_die(directory, step, keep_last, fatal_event):
    """Save, killed by SIGKILL at the n-th file system event."""
    num_events = 0

    def hook(event, arguments):
        nonlocal num_events
        if event.split(".")[0] in ("open", "os", "shutil") and event not in (
            "os.listdir",
            "os.scandir",
        ):
            num_events += 1
            if num_events == fatal_event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    save(directory, step, keep_last)


@pytest.mark.parametrize("step", [2, 1], ids=["new step", "same step again"])
def test_a_kill_at_any_moment_leaves_a_good_checkpoint(tmp_path, step):
    """SIGKILL before every single file operation of a save, keep_last=1, until one save gets
    through."""
    for fatal_event in range(1, 200):
        directory = tmp_path / str(fatal_event)
        save(directory, 1, keep_last=1)
        status = in_child(save_and_die, directory, step, 1, fatal_event)
        latest = load_latest(directory)
        assert latest.step in (1, step)
        assert_is(latest, latest.step)
        save(directory, 3, keep_last=1)  # and the run goes on
        assert names(directory) == ["latest", "step_00000003"]
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0
    assert fatal_event > 15


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_failing_write_is_explained_and_harms_nothing(tmp_path, monkeypatch, error):
    """Every fsync and rename of a save fails in turn."""
    save(tmp_path, 1, keep_last=1)
    num_failures = 0
    for function in ("fsync", "rename", "replace", "mkdir"):
        for fatal_call in range(1, 12):
            real, calls = getattr(os, function), []

            def failing(*arguments, _real=real, _calls=calls, _fatal=fatal_call, **options):
                _calls.append(1)
                if len(_calls) == _fatal:
                    raise OSError(error, os.strerror(error))
                return _real(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(os, function, failing)
                try:
                    save(tmp_path, 2, keep_last=2)
                    failed = False
                except OSError as caught:
                    failed, message = True, str(caught)
            if not failed:
                break
            num_failures += 1
            for part in (
                "checkpoint of step 2",
                str(tmp_path),
                os.strerror(error),
                "MB free",
                "is untouched",
                "Free some",
            ):
                assert part in message, f"{function}: {message}"
            assert message.count("could not write") == 1
            assert find_damage(tmp_path / "step_00000001") is None
            assert not list(tmp_path.glob(".tmp_*"))
    assert num_failures >= 8


def save_with_file_limit(directory, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with pytest.raises(
        OSError, match=r"could not write the checkpoint of step 2 to .*step_00000001 is untouched"
    ):
        save(directory, 2, size=size)
    weights = {"w": {"w": torch.zeros(4)}}
    with pytest.raises(OSError, match="File too large"):
        save_checkpoint(directory, 3, weights, {"optimiser": torch.zeros(size)})


def test_a_real_write_that_does_not_fit(tmp_path):
    """The kernel refuses to write more: once in the weights, once in the optimiser state."""
    save(tmp_path, 1)
    assert in_child(save_with_file_limit, tmp_path, 100_000) == 0
    assert names(tmp_path) == ["latest", "step_00000001"]
    assert_is(load_latest(tmp_path), 1)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match=r"could not write the checkpoint of step 1 to .*Not a directory"
    ):
        save(tmp_path / "file" / "run", 1)


def test_state_that_could_not_be_resumed_is_refused_at_saving(tmp_path):
    for value in (np.float64(1.0), object(), {1, 2}, Path("a")):
        with pytest.raises(ValueError, match=r"state\.schedule\.last\[1\] is a "):
            save_checkpoint(tmp_path, 1, {}, {"schedule": {"last": [0, value]}})
    assert names(tmp_path) == []


def test_atomic_write_replaces_or_leaves_alone(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    atomic_write_json(
        path, {"score": 1.5, "bad": float("nan"), "deep": [(1, float("inf"))], "at": Path("runs/a")}
    )
    assert json.loads(path.read_text()) == {
        "score": 1.5,
        "bad": None,
        "deep": [[1, None]],
        "at": "runs/a",
    }
    before = path.read_text()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(
        OSError,
        match=r"could not write results\.json to .*No space left on device.*another output folder",
    ):
        atomic_write_text(path, "new")
    assert path.read_text() == before
    assert names(tmp_path) == ["results.json"]


def test_config_differences_are_all_named():
    saved = {
        "objective": {"kl_coef": 0.01, "clip": [1, 2]},
        "seed": 1,
        "num_steps": 10,
        "gone": True,
    }
    current = {
        "objective": {"kl_coef": 0.02, "clip": (1, 2)},
        "seed": 2,
        "num_steps": 99,
        "new": Path("x"),
    }
    with pytest.raises(ValueError, match="other settings") as caught:
        check_same_config(saved, current, {"num_steps"})
    lines = str(caught.value).splitlines()
    assert lines[1:5] == [
        "  gone: was True, now not set",
        "  new: was not set, now 'x'",
        "  objective.kl_coef: was 0.01, now 0.02",
        "  seed: was 1, now 2",
    ]
    assert "another output folder" in lines[5]
    assert "Free to change: num_steps." in lines[5]
    check_same_config(saved, {**saved, "num_steps": 5}, {"num_steps"})
    with pytest.raises(
        ValueError, match=r"decoder\.num_steps"
    ):  # only the path given may change, not its namesakes
        check_same_config(
            {"decoder": {"num_steps": 1}}, {"decoder": {"num_steps": 2}}, {"num_steps"}
        )


def test_a_new_setting_at_its_default_is_no_difference():
    """Runs of before there was one go on; a run that had another value does not."""

    @dataclass(frozen=True)
    class Inner:
        rate: float
        kept: int = 2
        names: tuple[str, ...] = ("a",)

    @dataclass(frozen=True)
    class Outer:
        data: str
        inner: Inner = field(default_factory=lambda: Inner(0.1))
        count: int = 0

    defaults = defaults_of(Outer("x"))
    assert defaults == {"inner": {"rate": 0.1, "kept": 2, "names": ("a",)}, "count": 0}
    old = {"data": "x", "inner": {"rate": 0.1}}
    check_same_config(old, asdict(Outer("x")), defaults=defaults)
    with pytest.raises(ValueError, match=r"inner\.kept: was not set, now 3"):
        check_same_config(old, asdict(Outer("x", Inner(0.1, kept=3))), defaults=defaults)
    with pytest.raises(ValueError, match=r"inner\.kept: was 3, now 2"):
        check_same_config(asdict(Outer("x", Inner(0.1, kept=3))), asdict(Outer("x")), (), defaults)
    with pytest.raises(ValueError, match="count: was not set, now 0"):  # 0 is a value, unlike None
        check_same_config({}, {"count": 0})
