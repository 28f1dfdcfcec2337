"""The captioner's text states, before they condition the decoder alone: they learn to say which
words belong together.

The decoder's attention knows no order of words, so what a phrase says of one object must meet in
one state. Large language models bring that along; the tiny one, trained on next words only, did
not: after 128k samples its decoder painted 1 % of objects right. Here the state at each word for a
shape or a cell must name, under one linear layer, all that its phrase has said so far (shape,
colour, size, cell, or the rendered word), and the last state the background. The layer is thrown
away.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn

from uae.models.llm_diffusion import LLMDiffusion
from uae.stages.fit import FitSettings
from uae.world.build.captioner import caption_and_answer_loss, measure_captions, measure_questions
from uae.world.build.vision import HEADS, NOTHING, ReadOut
from uae.world.data import train_scenes
from uae.world.language import LEVELS, SIZE_OF, caption, read_caption
from uae.world.models import LLM_WIDTH
from uae.world.scene import CELLS, COLORS, SHAPES, WORDS, Scene, pick, scene_at

READ = {**HEADS, "cell": CELLS}
NUM_CAPTIONER_IMAGES = 32  # per micro-batch, for the captioning loss


class BindingTask:
    """Cross-entropy of what each phrase says, read from its last word's state, beside the
    captioner's own loss."""

    name = "binding"
    fit_settings = FitSettings(
        num_steps=1_600, batch_size=32, num_parallel=2, learning_rate=1e-3, ema_decay=0.997
    )

    def __init__(self, joint_folder: Path) -> None:
        torch.manual_seed(self.fit_settings.seed)
        self.model = LLMDiffusion.from_pretrained(joint_folder)
        self.encoder = self.model.encoder
        self.encoder.model.model.visual.requires_grad_(False)
        self.heads = ReadOut(LLM_WIDTH, READ)
        self.modules: dict[str, nn.Module] = {"captioner": self.encoder.model, "heads": self.heads}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.fit_settings.batch_size, seed=2)
        rng = random.Random(f"binding {step}")
        with torch.autocast("cpu", torch.bfloat16):
            logits, labels = self._read(scenes, rng)
            said, metrics = caption_and_answer_loss(
                self.encoder, scenes[:NUM_CAPTIONER_IMAGES], rng
            )
        bound = torch.stack([_cross_entropy(logits[name], labels[name]) for name in READ]).sum()
        return bound + said, {"bound": bound.item(), **metrics}

    def _read(
        self, scenes: list[Scene], rng: random.Random
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits at the states that must name something, and their labels."""
        texts = [
            caption(s, "exhaustive" if rng.random() < 0.5 else pick(rng, LEVELS), rng)
            for s in scenes
        ]
        states, mask = self.encoder.text_states(texts)
        rows, places, said = [], [], []
        for row, text in enumerate(texts):
            start = self.encoder.chat([{"role": "generate", "content": text}]).index(
                self.encoder.tokenize(text)[0]
            )
            found = said_by(text.split())
            background = read_caption(text).background
            found[int(mask[row].sum()) - 1 - start] = (
                {"background": background} if background else {}
            )
            rows += [row] * len(found)
            places += [start + at for at in found]
            said += found.values()
        labels = {
            kind: torch.tensor([READ[kind].index(s[kind]) if kind in s else NOTHING for s in said])
            for kind in READ
        }
        return self.heads.read(states[rows, places]), labels

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        scenes = [scene_at("validation", i) for i in range(200)]
        logits, labels = self._read(scenes, random.Random("binding evaluation"))
        right = {
            name: (logits[name].argmax(-1) == labels[name])[labels[name] != NOTHING]
            for name in READ
        }
        bound = {f"bound_{name}": values.float().mean().item() for name, values in right.items()}
        return {
            **bound,
            **{
                f"question_{kind}": share
                for kind, share in measure_questions(self.encoder, scenes).items()
            },
            "detailed_recall": measure_captions(self.encoder, scenes, "detailed")["exact_recall"],
        }

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


def said_by(words: list[str]) -> dict[int, dict[str, str]]:
    """By the place of each word for a shape, a cell or a rendered word: what its phrase has said
    until then."""
    found: dict[int, dict[str, str]] = {}
    phrase: dict[str, str] = {}
    for at, word in enumerate(words):
        if word in SIZE_OF or (word in COLORS and "content" in phrase):
            phrase = {}
        if word in SIZE_OF:
            phrase["size"] = SIZE_OF[word]
        elif word in COLORS:
            phrase["color"] = word
        elif word in SHAPES:
            phrase["content"] = word
        elif word in WORDS and words[at - 1] == "word":
            phrase = {"content": "word", "word": word}
        elif word in CELLS and "content" in phrase:
            phrase["cell"] = word
        else:
            continue
        if "content" in phrase:
            found[at] = dict(phrase)
    return found


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if (labels == NOTHING).all():
        return logits.float().sum() * 0
    return nn.functional.cross_entropy(logits.float(), labels)
