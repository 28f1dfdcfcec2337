"""Work that several processes share, with the results that one process has.

Work comes in batches, which are the same for any number of processes. In each round every process
takes a batch. What came of a round is told to all, in the order of the batches, so that whatever is
made of it is what one process makes, and the main process alone writes it down. Results travel;
files that the work itself writes are of the process that did it. In a command of one process
nothing waits for the end of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from uae.utils.processes import gather, is_main, num_processes, of_main, process_rank
from uae.utils.progress import phase

Batch = TypeVar("Batch")
Made = TypeVar("Made")
EVERY_SEC = 60.0  # of the main process's work the others hear, so that they wait on


def in_order(
    batches: Sequence[Batch],
    work: Callable[[Batch], Iterable[Made]],
    progress: tuple[str, str] | None = None,
    is_shared: bool = True,
) -> Iterator[Made]:
    """What ``work`` makes of each batch, in their order, on all processes: they all call this. It
    must be picklable.

    progress: what is done, and what the batches are called. is_shared: False where this process is
    alone in it.
    """
    size = num_processes() if is_shared else 1
    shown = phase(progress[0], len(batches), progress[1]) if progress else nullcontext(_silent)
    with shown as take:
        for start in range(0, len(batches), size):
            several = batches[start : start + size]
            take(len(several))
            if size == 1:
                yield from work(several[0])
                continue
            place = process_rank()
            own = list(work(several[place])) if place < len(several) else []
            for made in gather(own):
                yield from made
        take(0)


def own_batches(batches: Sequence[Batch], is_shared: bool = True) -> Sequence[Batch]:
    """Those that ``in_order`` has this process work on."""
    return batches[process_rank() :: num_processes()] if is_shared else batches


def by_main(make: Callable[[], Iterable[Made]]) -> Iterator[Made]:
    """What the main process makes alone, on all processes: they all call this. The others have it
    a little later."""
    if not is_main():
        yield from told_by_main()
        return
    telling, stream = Telling(), make()
    try:
        for made in stream:
            yield made
            telling.add(made)
    finally:
        if isinstance(stream, Generator):
            stream.close()  # what it has begun ends here, not when memory is freed
    telling.end()


class Telling:
    """The main process's word to the others of what it makes, now and then."""

    def __init__(self) -> None:
        self._held: list[Any] = []
        self._last = time.monotonic()

    def add(self, *made: Any) -> None:
        """Something was made, or at least time has passed."""
        if num_processes() == 1:
            return
        self._held += made
        if time.monotonic() - self._last > EVERY_SEC:
            self._tell()

    def end(self) -> None:
        """There is no more."""
        self._tell()
        of_main(None)

    def _tell(self) -> None:
        of_main(self._held)
        self._held, self._last = [], time.monotonic()


def told_by_main() -> Iterator[Any]:
    """What ``Telling`` tells, on the other processes."""
    while (held := of_main(())) is not None:
        yield from held


def _silent(num_units: int) -> None:
    """Takes the place of a phase."""
