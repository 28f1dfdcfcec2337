"""Asking for captions, many at a time; every answer is in the journal before the next question is
asked.

Failures are told apart by what follows from them. One image that is refused is recorded and the
rest goes on; one that got no answer after all retries is left for the next run. Both may also mean
that the endpoint or the command's options are wrong, so refusals are recorded only once this run
has had an answer, and ``STOP_AFTER`` failures without an answer between them stop the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from uae.data.answers import ImageRefused, NoAnswer
from uae.data.longcap.annotators import Annotator
from uae.data.longcap.journal import Journal
from uae.data.longcap.pictures import Picture

STOP_AFTER = 10


class Asking:
    """Asks for what the journal lacks; ``unanswered`` says, by sha256, why an image waits for the
    next run."""

    def __init__(self, annotator: Annotator, journal: Journal, on_done: Callable[[], None]) -> None:
        self.annotator, self.journal, self.on_done = annotator, journal, on_done
        self.unanswered: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._failures_in_a_row = 0
        self._has_answered = False

    async def run(self, pictures: list[Picture], concurrency: int) -> None:
        """All pictures, in order, ``concurrency`` at a time.

        Raises:
            ValueError: when no image can be captioned; what was answered stays.
        """
        queue = iter(pictures)
        workers = [asyncio.create_task(self._work(queue)) for _ in range(concurrency)]
        try:
            await asyncio.gather(*workers)
            if self._refused:
                raise ValueError(
                    "each image was refused, nothing is recorded: "
                    f"{next(iter(self._refused.values()))}"
                )
        except ValueError as error:
            note = (
                f"Nothing done is lost ({self.journal.num_captions} captions): the same command "
                "goes on from there."
            )
            raise ValueError(f"{error}\n{note}") from error
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, queue: Iterator[Picture]) -> None:
        for picture in queue:
            try:
                await self._caption(picture)
            except ImageRefused as error:
                self._refused[picture.sha256] = str(error)
                self._count_failure(str(error))
            except NoAnswer as error:
                self.unanswered[picture.sha256] = str(error)
                self._count_failure(str(error))
            self.on_done()

    async def _caption(self, picture: Picture) -> None:
        """Until there is a caption or no attempt is left."""
        while self.journal.should_ask(picture.sha256):
            answer = await self.annotator(picture.file, self.journal.num_answers(picture.sha256))
            self.journal.add_answer(picture.sha256, answer)
            self._failures_in_a_row, self._has_answered = 0, True
            self._record_refused()

    def _count_failure(self, reason: str) -> None:
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= STOP_AFTER:
            raise ValueError(f"{STOP_AFTER} images in a row got no answer, the last one: {reason}")
        self._record_refused()

    def _record_refused(self) -> None:
        """An endpoint that has answered means the image when it refuses one, not the command's
        options."""
        if self._has_answered:
            for sha256, reason in self._refused.items():
                self.journal.add_failure(sha256, reason)
            self._refused.clear()
