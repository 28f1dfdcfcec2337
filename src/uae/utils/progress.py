"""Signs of life: what is being done now, how much of it is done, and how long the rest will take.

Code that may take long says so, and need not know whether anyone looks:

    for t in track(range(64), "captioning", "tokens"): ...
    with phase("loading transformer"): ...

``show_phases`` opens the display, once for a whole command. On a terminal it is a live line, under
the bar of a run if there is one; elsewhere a plain line every ``EVERY_SEC`` at most. Where none is
open, both do nothing. Counts are those of the Python loop: work may still be queued on a GPU, as
waiting for it would cost time.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

Item = TypeVar("Item")
LIVE_AFTER_SEC = 0.5  # on a terminal, for what is sooner over only flickers
EVERY_SEC = 30.0  # of silence without a terminal, then a line about the phase that is under way


@dataclass(eq=False)  # two of one name are two
class Phase:
    """A part of the work, and how many of its units are done; without ``total`` they are not
    counted."""

    name: str
    total: int | None
    unit: str
    start: float
    done: int = 0
    in_hand: int = 0
    """Units that are worked on at once, and done at once."""


class Display:
    """The phases under way, outermost first, shown where the user looks.

    A terminal is drawn on only while a run has its bar or a phase lasts, so that tables may be
    printed in between.
    """

    def __init__(self, console: Any) -> None:
        self.console = console
        self.process = os.getpid()
        self.is_live = console.is_terminal and not console.is_dumb_terminal
        """Whether it is drawn on a terminal."""
        self._phases: list[Phase] = []
        self._bars: list[Any] = []
        self._last_line = time.monotonic()
        self._over = threading.Event()
        self._live: Any = None
        self._speaking, self._drawing = threading.RLock(), threading.RLock()

    def open(self) -> None:
        """Watch the phases: they say nothing themselves while a single unit takes long."""
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        self._over.set()
        self._erase()

    def begin(self, name: str, total: int | None, unit: str) -> Phase:
        phase = Phase(name, total, unit, time.monotonic())
        self._phases.append(phase)
        return phase

    def take(self, phase: Phase, num_units: int) -> None:
        """What was in hand is done, and so many units are next."""
        phase.done, phase.in_hand = phase.done + phase.in_hand, num_units
        if not self.is_live:
            self._speak_if_due()

    def end(self, phase: Phase) -> None:
        """The phase is over, and with it those within it that were left by an exception."""
        with self._speaking:
            if phase in self._phases:
                del self._phases[self._phases.index(phase) :]
        if not self._phases and not self._bars:
            self._erase()

    def add_bar(self, bar: Any) -> None:
        """Draw the bar of a run above the line of its phase."""
        self._bars.append(bar)
        self._draw()

    def remove_bar(self, bar: Any) -> None:
        """The bar is over; it stays on the terminal as it is."""
        self._bars.remove(bar)
        if not self._phases and not self._bars:
            self._erase()
        self.console.print(bar)

    def said_something(self) -> None:
        """A line was written, which is a sign of life too."""
        self._last_line = time.monotonic()

    def text(self) -> str:
        """``painting 8/32 images, denoising 3/10 steps  ETA 0m40s``, or nothing."""
        phases = self._phases[:]
        return _described(phases, time.monotonic()) if phases else ""

    def __rich__(self) -> Any:
        """Bars and the phases' line as they are when it is drawn, which each ``print`` does too."""
        from rich.console import Group
        from rich.text import Text

        line = self.text()
        lines = [Text(line, overflow="ellipsis", no_wrap=True)] if line else []
        return Group(*self._bars, *lines)

    def _speak_if_due(self) -> None:
        with self._speaking:
            if self._phases and time.monotonic() - self._last_line >= EVERY_SEC:
                self.said_something()
                print(self.text(), file=self.console.file, flush=True)

    def _watch(self) -> None:
        while not self._over.wait(LIVE_AFTER_SEC / 2 if self.is_live else 1.0):
            try:
                self._draw_if_due() if self.is_live else self._speak_if_due()
            except (OSError, ValueError):  # nobody reads any more; the command's next line fails
                return

    def _draw_if_due(self) -> None:
        with self._drawing:
            phases = self._phases[:]
            if phases and time.monotonic() - phases[0].start >= LIVE_AFTER_SEC:
                self._draw()

    def _draw(self) -> None:
        with self._drawing:
            if self._live is None:
                self._live = _live(self)
                self._live.start()

    def _erase(self) -> None:
        with self._drawing:
            live, self._live = self._live, None
            if live is not None:
                live.stop()


_display: ContextVar[Display | None] = ContextVar("display", default=None)


@contextmanager
def show_phases(console: Any = None) -> Iterator[Display]:
    """Show phases for as long as the context lasts; inside another one, that one is the display."""
    if (outer := _current_display()) is not None:
        yield outer
        return
    if console is None:
        from rich.console import Console

        console = Console()
    display = Display(console)
    token = _display.set(display)
    display.open()
    try:
        yield display
    finally:
        _display.reset(token)
        display.close()


@contextmanager
def phase(name: str, total: int | None = None, unit: str = "") -> Iterator[Callable[..., None]]:
    """A part of the work that may take long. Before the next of its ``total`` units, what it yields
    is called with their number; those before are done then."""
    display = _current_display()
    if display is None:
        yield lambda num_units: None
        return
    current = display.begin(name, total, unit)
    try:
        yield partial(display.take, current)
    finally:
        display.end(current)


def track(
    items: Collection[Item], name: str, unit: str = "", *, size: Callable[[Item], int] | None = None
) -> Iterator[Item]:
    """The items, as a phase with one unit for each, or as many as its ``size``."""
    total = len(items) if size is None else sum(size(item) for item in items)
    with phase(name, total, unit) as take:
        for item in items:
            take(1 if size is None else size(item))
            yield item
        take(0)


def clock(seconds: float) -> str:
    """``0m40s``, ``2h46m``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def _current_display() -> Display | None:
    """The display of this process; a forked one has no part in its parent's."""
    display = _display.get()
    return display if display is not None and display.process == os.getpid() else None


def _described(phases: list[Phase], now: float) -> str:
    counts = (
        f"{p.name} {p.done}/{p.total} {p.unit}".rstrip() if p.total else p.name for p in phases
    )
    return f"{', '.join(counts)}  {_time_left(phases, now)}"


def _time_left(phases: list[Phase], now: float) -> str:
    """By the outermost phase that is counted; the time so far where there is nothing to go by."""
    counted = [i for i, p in enumerate(phases) if p.total]
    share = _share_done(phases[counted[0] :]) if counted else 0.0
    if not share:
        return clock(now - phases[0].start)
    return f"ETA {clock((now - phases[counted[0]].start) * (1 - share) / share)}"


def _share_done(phases: list[Phase]) -> float:
    """Of the first; those within it are a part of what it has in hand."""
    share = 0.0
    for p in reversed(phases):
        if p.total:
            share = min(1.0, (p.done + p.in_hand * share) / p.total)
    return share


def _live(display: Display) -> Any:
    """What is printed meanwhile appears above; a stream that does not lead to this terminal is left
    alone."""
    from rich.live import Live

    is_stdout = display.console.file is sys.stdout
    return Live(
        display,  # type: ignore[arg-type]
        console=display.console,
        transient=True,
        redirect_stdout=is_stdout,
        redirect_stderr=is_stdout and sys.stderr.isatty(),
    )
