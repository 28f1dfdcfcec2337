"""A few of the world's questions, with pictures as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uae.images.write import save_png
from uae.world.data import pictures
from uae.world.questions import make_questions
from uae.world.scene import first_scenes


@dataclass(frozen=True)
class Asked:
    image: Path
    text: str
    answer: str


def few_questions(folder: Path, num: int = 6) -> list[Asked]:
    """About three scenes of the test split."""
    scenes = first_scenes("test", 3)
    files = [folder / f"{place}.png" for place in range(len(scenes))]
    for file, image in zip(files, pictures(scenes), strict=True):
        save_png(file, image)
    return [Asked(files[s], q.text, q.answer) for s, q in make_questions(scenes, num, seed=0)]
