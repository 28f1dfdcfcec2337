"""One process a folder: a second one is refused, and a killed one locks nobody out."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from uae.utils import lock
from uae.utils.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from uae.utils.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen]:
    """Another process has the folder; it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


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
    assert not list(tmp_path.iterdir())


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
