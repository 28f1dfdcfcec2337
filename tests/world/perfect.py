"""A model that is always right, unless it is told how to be wrong."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from uae.config import CaptionSettings, DecodeSettings
from uae.types import Captions, Reconstructions, Rollout
from uae.world.data import pictures
from uae.world.detector import detect
from uae.world.language import (
    NUMBERS,
    exhaustive_caption,
    read_caption,
)
from uae.world.scene import (
    CELLS,
    COLORS,
    Object,
    Scene,
    Word,
)


class Perfect:
    """Sees by the detector, says everything, draws what it reads; what is unsaid it makes up."""

    family = "perfect"
    captioning, decoding = CaptionSettings(temperature=0.0), DecodeSettings()
    encoder = SimpleNamespace(device=torch.device("cpu"))
    decoder = None

    def __init__(
        self, see=lambda scene: scene, say=exhaustive_caption, draw=lambda scene: scene, answer=None
    ) -> None:
        self.see, self.say, self.draw, self.fixed_answer = see, say, draw, answer
        self.instructions: list[str] = []

    def caption(self, images, settings, *, group_size=1, seed=0, step=0):
        self.instructions.append(settings.instruction)
        texts = [self.say(self.see(d.scene)) for d in detect(torch.stack(list(images)))]
        longest = torch.tensor([len(text.split()) > settings.max_new_tokens for text in texts])
        steps = torch.zeros(len(texts), 1)
        rollout = Rollout(steps.long(), steps, steps.bool(), context=None)
        return Captions(texts, rollout, group_size, longest)

    def answer(self, images, questions, *, max_new_tokens=16):
        if self.fixed_answer is not None:
            return [self.fixed_answer] * len(questions)
        return [
            reply(d.scene, q)
            for d, q in zip(detect(torch.stack(list(images))), questions, strict=True)
        ]

    def reconstruct(self, captions, settings, *, group_size=1, seed=0, step=0):
        return self.generate(captions.texts, settings, group_size=group_size, seed=seed, step=step)

    def generate(self, texts, settings, *, group_size=1, seed=0, step=0):
        scenes = [self.draw(scene_of(text)) for text in texts]
        return Reconstructions(pictures(scenes), group_size)

    def begin_training(self, lora_rank, *, captions, decoding):
        pytest.fail("measuring must not train the model")

    def save_pretrained(self, folder):
        pytest.fail("measuring must not save the model")


def scene_of(text: str) -> Scene:
    """A scene that a caption describes: free cells, size and background are filled in."""
    reading, tokens = read_caption(text), text.split()
    objects = []
    free = [c for c in range(9) if c not in {m.cell for m in reading.mentions}]
    word = None
    if reading.word:
        following = tokens[tokens.index(reading.word) + 1 :]
        is_placed = bool(following) and following[0] in CELLS
        word = Word(CELLS.index(following[0]) if is_placed else free[-1], reading.word)
        free.remove(word.cell)
    for m in reading.mentions:
        cell = m.cell if m.cell is not None else free.pop(0)
        objects.append(Object(cell, m.shape, m.color or "red", m.size or "large"))
    counts = [NUMBERS.index(token) for token in tokens if token in NUMBERS]
    if not objects and counts:
        objects = [Object(cell, "circle", "red", "small") for cell in free[: counts[0]]]
    return Scene(reading.background or "white", tuple(sorted(objects)), word)


def reply(scene: Scene, text: str) -> str:
    """The answer to a question, worked out from its words alone."""
    words = text.split()[:-1]
    by_cell = {CELLS[o.cell]: o for o in scene.objects}
    pairs = {(o.color, o.shape): o for o in scene.objects}
    if text.startswith("is there a word"):
        return "yes" if scene.word else "no"
    if text.startswith("what is the word"):
        return scene.word.text if scene.word else "no"
    if text.startswith("is there a"):
        return "yes" if tuple(words[-2:]) in pairs else "no"
    if text.startswith("where"):
        return CELLS[pairs[words[-2], words[-1]].cell]
    if text.startswith("how many"):
        return NUMBERS[sum(set(words[2:-1]) <= {o.color, o.size} for o in scene.objects)]
    if text.startswith("is the"):
        first, second = pairs[words[2], words[3]], pairs[words[-2], words[-1]]
        axis = 0 if "above" in words else 1
        return "yes" if divmod(first.cell, 3)[axis] < divmod(second.cell, 3)[axis] else "no"
    target = by_cell.get(words[-1]) or next(o for o in scene.objects if o.shape == words[-1])
    return getattr(target, words[1])


NEXT_COLOR = dict(zip(COLORS, [*list(COLORS)[1:], next(iter(COLORS))], strict=True))


def recolored(scene: Scene) -> Scene:
    return replace(
        scene, objects=tuple(replace(o, color=NEXT_COLOR[o.color]) for o in scene.objects)
    )
