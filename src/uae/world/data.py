"""Endless training data of the world: the ``i``-th sample is a function of ``i``."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from uae.data.questions import QUESTIONS_PER_IMAGE, num_images_of
from uae.images.write import save_png
from uae.stages.sources import World
from uae.world.language import any_question, exhaustive_caption
from uae.world.prompts import ScenePrompt, exhaustive_prompt, prompt_at
from uae.world.scene import Scene, Split, first_scenes, render_batch, scene_at


def train_scenes(step: int, batch_size: int, *, seed: int = 0) -> list[Scene]:
    """The scenes of one training step."""
    return [scene_at("train", step * batch_size + i, seed=seed) for i in range(batch_size)]


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """``[B, 3, 48, 48]`` in [0, 1]."""
    return torch.from_numpy(render_batch(list(scenes)))


def write_pictures(folder: Path, number: int) -> None:
    """The first scenes of the test split, a file each."""
    folder.mkdir()
    for i, image in enumerate(pictures(first_scenes("test", number))):
        save_png(folder / f"{i:04}.png", image)


class SceneImages:
    """An image source: scenes of the training split, never the same twice.

    The probe's are of the validation split.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def batch(self, step: int, num_images: int) -> list[Tensor]:
        return list(pictures(train_scenes(step, num_images, seed=self.seed)))

    def probe(self, num_images: int) -> list[Tensor]:
        return list(pictures(first_scenes("validation", num_images)))


class ScenePairs:
    """Pictures of training scenes with their exhaustive captions: what painting learnt from before.

    Scenes differ from those that prompts are of."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def batch(self, step: int, num_pairs: int) -> tuple[Tensor, list[str]]:
        scenes = train_scenes(step, num_pairs, seed=self.seed + 1)
        return pictures(scenes), [exhaustive_caption(scene) for scene in scenes]


class SceneQuestions:
    """A question source: two about each of the first training scenes, whatever can be asked of
    them."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def batch(self, step: int, num_questions: int) -> tuple[list[Tensor], list[str]]:
        scenes = train_scenes(step, num_images_of(num_questions), seed=self.seed)
        images, places = list(pictures(scenes)), range(num_questions)
        scene_of = [i // QUESTIONS_PER_IMAGE for i in places]
        draws = [random.Random(f"anchor {self.seed} {step} {i}") for i in places]
        questions = [any_question(scenes[j], rng) for j, rng in zip(scene_of, draws, strict=True)]
        return [images[j] for j in scene_of], [question.text for question in questions]


class ScenePrompts:
    """A prompt source: GenEval-style prompts of training scenes, the six tags in turn, and among
    them exhaustive captions of others.

    The probe's are of the validation split.
    """

    def __init__(self, seed: int = 0, exhaustive_share: float = 0.0) -> None:
        self.seed, self.exhaustive_share = seed, exhaustive_share

    def batch(self, step: int, num_prompts: int) -> list[ScenePrompt]:
        places = range(step * num_prompts, (step + 1) * num_prompts)
        return [self._prompt("train", place) for place in places]

    def probe(self, num_prompts: int) -> list[ScenePrompt]:
        return [self._prompt("validation", place) for place in range(num_prompts)]

    def _prompt(self, split: Split, place: int) -> ScenePrompt:
        """Exhaustive captions are spread evenly; the tags go on after one where they were."""
        num_before, num_then = (int(n * self.exhaustive_share) for n in (place, place + 1))
        if num_then > num_before:
            return exhaustive_prompt(scene_at(split, num_before, seed=self.seed))
        return prompt_at(split, place - num_before, self.seed)


SCENES = World(SceneImages, ScenePrompts, ScenePairs, SceneQuestions)
"""What training on the world takes of it."""
