"""One process a folder: a second one is refused, and a killed one locks nobody out."""

from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path

import pytest

from tests.utils.holder import held_elsewhere
from uae.utils import lock
from uae.utils.lock import locked


def test_a_second_process_is_told_who_has_the_folder(tmp_path: Path):
    folder = tmp_path / "run"
    with (
        held_elsewhere(folder) as other,
        pytest.raises(
            ValueError,
            match=rf"{re.escape(str(folder))} is in use by process {other.pid} on .*another folder",
        ),
        locked(folder),
    ):
        pass


def test_after_a_kill_the_folder_is_free(tmp_path: Path):
    with held_elsewhere(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert [path.name for path in tmp_path.iterdir()] == [lock.FILE_NAME]
        with locked(tmp_path):
            assert str(os.getpid()) in (tmp_path / lock.FILE_NAME).read_text()
    assert tmp_path.exists() and not list(tmp_path.iterdir())


def test_the_same_process_may_lock_again_and_the_outermost_ends_it(tmp_path: Path):
    with locked(tmp_path):
        with locked(tmp_path / ".." / tmp_path.name):
            pass
        assert (tmp_path / lock.FILE_NAME).exists()
    assert not list(tmp_path.iterdir())


def test_an_error_frees_it(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    with held_elsewhere(tmp_path):
        pass


def test_a_file_that_its_owner_removed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Opened while the owner had it, locked once it was gone: a third process would make a new
    file, and both would hold a lock."""
    real, calls = lock.try_lock, []

    def slow(descriptor: int) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / lock.FILE_NAME).unlink()
        return real(descriptor)

    monkeypatch.setattr(lock, "try_lock", slow)
    with locked(tmp_path):
        assert len(calls) == 2 and (tmp_path / lock.FILE_NAME).read_text()


def test_a_folder_that_is_removed_while_it_is_held_is_no_error(tmp_path: Path):
    folder = tmp_path / "run"
    with locked(folder):
        (folder / lock.FILE_NAME).unlink()
        folder.rmdir()
    assert not folder.exists()


def test_a_folder_of_which_nothing_came_is_gone(tmp_path: Path):
    with pytest.raises(ValueError, match="no such model"), locked(tmp_path / "runs" / "a"):
        raise ValueError("no such model")
    assert not (tmp_path / "runs" / "a").exists()
    with locked(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "log").write_text("")
    assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == ["log"]


def test_a_disk_without_locks_refuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with locked(tmp_path):
        pass


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"could not write .run.lock to .*another output folder"),
        locked(tmp_path / "file"),
    ):
        pass
