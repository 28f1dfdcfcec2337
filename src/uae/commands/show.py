"""What commands say while a model captions and paints images."""

from __future__ import annotations

from typing import Any

from uae.bench.api import Answers, Task
from uae.bench.loop.api import Loop
from uae.bench.loop.load import ARROW, load_loop
from uae.models.base import UnifiedModel
from uae.models.load import SHIPPED
from uae.report.gallery import write_gallery

PHOTO_NOTE = (
    "the tiny model has only ever seen 48x48 scenes of simple shapes: what it makes of "
    "photographs shows that the path works, not what a real model can do (--model "
    "ENCODER+DECODER)"
)


def load_for_photos(source: str) -> UnifiedModel | Loop:
    """The model, or the loop of two, with a word on the tiny ones."""
    model = load_loop(source)
    if is_tiny(source):
        print(f"note: {PHOTO_NOTE}")
    return model


def is_tiny(source: str) -> bool:
    """Whether a shipped model is in it."""
    return any(part.strip() in SHIPPED for part in source.split(ARROW))


def show_round_trips(task: Task[Any], answers: Answers[Any]) -> None:
    """Write a page of the round trips among the answers, if there are any, and say where it is."""
    if round_trips := task.round_trips(answers):
        page = task.out / "report.html"
        write_gallery(page, round_trips, PHOTO_NOTE if is_tiny(task.model) else "")
        print(f"{len(round_trips)} of {len(answers.items)} images: {page}")
