"""Signs of life: plain lines at most every 30 s, a live line on a terminal, nothing where nobody
looks."""

import contextlib
import io
import os
import subprocess
import sys
import threading
import time
from contextvars import copy_context

import pytest
from rich.console import Console

from uae.utils import progress
from uae.utils.metrics import TrainProgress
from uae.utils.progress import phase, show_phases, track


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of a clock that the test moves."""
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return clock


def terminal(out: io.StringIO) -> Console:
    return Console(file=out, force_terminal=True, width=120, _environ={"TERM": "xterm"})


def test_a_plain_line_every_thirty_seconds(now: list[float]):
    out = io.StringIO()
    with show_phases(Console(file=out)):
        for _ in track(range(64), "captioning", "tokens"):
            now[0] += 2
        for _ in track(range(4), "painting", "images"):
            now[0] += 40
    assert out.getvalue().splitlines() == [
        "captioning 15/64 tokens  ETA 1m38s",
        "captioning 30/64 tokens  ETA 1m08s",
        "captioning 45/64 tokens  ETA 0m38s",
        "captioning 60/64 tokens  ETA 0m08s",
        "painting 1/4 images  ETA 2m00s",
        "painting 2/4 images  ETA 1m20s",
        "painting 3/4 images  ETA 0m40s",
        "painting 4/4 images  ETA 0m00s",
    ]


def test_half_a_minute_of_phases_says_nothing(now: list[float]):
    out = io.StringIO()
    with show_phases(Console(file=out)):
        for name in ("captioning", "painting"):
            for _ in track(range(14), name):
                now[0] += 1
    assert out.getvalue() == ""


def test_phases_within_phases_count_for_the_outer_one(now: list[float]):
    out = io.StringIO()
    with show_phases(Console(file=out)), phase("scoring", 4, "rewards") as take:
        take(1)
        now[0] += 20
        take(1)
        with phase("dinov2"):
            for _ in track(range(2), "batches"):
                now[0] += 10
    assert out.getvalue().splitlines() == [
        "scoring 1/4 rewards, dinov2, batches 1/2  ETA 0m50s"
    ]  # 30 s, 3 of 8


def test_what_is_done_at_once_counts_at_once(now: list[float]):
    out = io.StringIO()
    with show_phases(Console(file=out)):
        for batch in track([[1] * 12, [1] * 4], "painting", "images", size=len):
            for _ in track(range(10), "denoising", "steps"):
                now[0] += len(batch)
    assert out.getvalue().splitlines() == [
        "painting 0/16 images, denoising 3/10 steps  ETA 2m04s",  # 36 s, 3.6 of 16
        "painting 0/16 images, denoising 6/10 steps  ETA 1m28s",
        "painting 0/16 images, denoising 9/10 steps  ETA 0m52s",
        "painting 12/16 images, denoising 5/10 steps  ETA 0m20s",
    ]


def test_an_uncounted_phase_shows_its_time(now: list[float]):
    with show_phases(Console(file=io.StringIO())) as display, phase("loading transformer"):
        now[0] += 70
        assert display.text() == "loading transformer  1m10s"
    assert display.text() == ""


def test_lines_of_a_run_are_signs_of_life_too(now: list[float]):
    """A step every 20 s says enough; one of 100 s does not."""
    out = io.StringIO()
    with TrainProgress("train", total=4, console=Console(file=out)) as bar:
        for step, seconds in enumerate((20, 20, 100, 20)):
            for _ in track(range(4), "captioning"):
                now[0] += seconds / 4
            bar.update(step + 1)
    lines = [line.split("  ")[0] for line in out.getvalue().splitlines()]
    assert lines == [
        "train 1/4",
        "train 2/4",
        "captioning 2/4",
        "captioning 4/4",
        "train 3/4",
        "train 4/4",
    ]


def test_an_exception_ends_its_phases(now: list[float]):
    out = io.StringIO()
    with show_phases(Console(file=out)) as display:
        with contextlib.suppress(KeyError), phase("painting", 8, "images"):
            for _ in track(range(10), "denoising"):
                raise KeyError
        assert display.text() == ""
        for t in track(range(10), "captioning"):
            if t == 3:
                break
        assert display.text() == ""
    with phase("painting"):
        now[0] += 100
    assert out.getvalue() == ""


def test_a_terminal_shows_the_phase_under_the_bar():
    out = io.StringIO()
    with TrainProgress("train", total=50, console=terminal(out)) as bar:
        bar.update(1, reward=0.25)
        with phase("captioning", 64, "tokens") as take:
            take(1)
            take(1)
            time.sleep(0.6)
        lines = out.getvalue()
    assert "1/50" in lines and "reward 0.250" in lines
    assert "captioning 1/64 tokens  ETA 0m" in lines
    assert lines.index("1/50") < lines.index("captioning")
    left = out.getvalue()[len(lines) :]
    assert "1/50" in left and "captioning" not in left  # the bar stays, the phase goes


def test_a_terminal_is_left_in_order_by_an_exception():
    out = io.StringIO()
    with contextlib.suppress(KeyError), show_phases(terminal(out)), phase("loading"):
        time.sleep(1.2)
        raise KeyError
    assert "loading  0m0" in out.getvalue()
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert out.getvalue().rindex(shown) > out.getvalue().index(hidden)
    assert sys.stdout.__class__.__name__ != "FileProxy"


def test_a_terminal_is_free_between_phases():
    """Tables are printed past the display, by a console of their own."""
    out = io.StringIO()
    with show_phases(terminal(out)):
        for _ in range(100):
            with phase("quick"):
                pass
        assert out.getvalue() == ""
        with phase("slow"):
            time.sleep(1.2)
        screen = out.getvalue()
        assert "slow  0m0" in screen
        assert screen.rindex("\x1b[2K") > screen.rindex("slow")  # the line is empty again
        assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")
        terminal(out).print("table")
    assert out.getvalue() == screen + "table\n"


def test_a_bar_in_the_display_of_a_command_shares_it():
    out = io.StringIO()
    with show_phases(terminal(out)) as display:
        with TrainProgress("train", total=2) as bar, show_phases() as inner:
            bar.update(2, reward=0.5)
            assert inner is display
        assert "2/2" in out.getvalue() and "reward 0.500" in out.getvalue()


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(now: list[float]):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, _environ={"TERM": "dumb"})
    with show_phases(console):
        for _ in track(range(2), "painting"):
            now[0] += 30
    assert out.getvalue().splitlines() == ["painting 1/2  ETA 0m30s", "painting 2/2  ETA 0m00s"]


def test_a_long_unit_is_spoken_of_while_it_lasts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "EVERY_SEC", 0.5)
    out = io.StringIO()
    with show_phases(Console(file=out)), phase("loading encoder"):
        time.sleep(2.5)  # nothing advances
    assert 1 <= len(out.getvalue().splitlines()) <= 3
    assert out.getvalue().startswith("loading encoder  0m0")


def test_a_stream_that_is_closed_ends_the_watcher_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(progress, "EVERY_SEC", 0.0)
    out = io.StringIO()
    with show_phases(Console(file=out)), phase("loading"):
        out.close()
        time.sleep(1.3)
    assert capsys.readouterr().err == ""


def test_nothing_is_shown_where_nobody_asked(capsys: pytest.CaptureFixture[str], now: list[float]):
    for _ in track(range(3), "painting"):
        now[0] += 100
    assert capsys.readouterr() == ("", "")


def test_threads_may_share_a_display():
    """Contexts are copied into threads; what they do at once leaves nothing behind."""
    with show_phases(Console(file=io.StringIO())) as display:

        def work() -> None:
            for _ in track(range(2000), "working"):
                pass

        threads = [threading.Thread(target=copy_context().run, args=(work,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert display.text() == ""


def test_a_forked_process_has_no_part_in_it():
    with show_phases(Console(file=io.StringIO())) as display, phase("reading"):
        child = os.fork()
        if child == 0:
            with phase("in the child"):
                os._exit(0 if display.text().startswith("reading  ") else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_the_core_knows_no_rich():
    code = (
        "import sys; import uae.utils.progress; assert 'rich' not in sys.modules and 'torch' not "
        "in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_it_costs_next_to_nothing():
    began = time.process_time()
    for _ in track(range(100_000), "captioning"):
        pass
    assert (
        time.process_time() - began < 2
    )  # 20 µs a unit, types checked; a token takes milliseconds
