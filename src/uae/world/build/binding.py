"""The captioner's text states learn which words belong together, to condition the decoder.

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
from uae.world.build.captioner import caption_and_answer_loss, captioner_quality
from uae.world.build.vision import HEADS, NOTHING, ReadOut, shares_right
from uae.world.data import train_scenes
from uae.world.language import LEVELS, SIZE_OF, caption, read_caption
from uae.world.models import LLM_WIDTH
from uae.world.scene import CELLS, COLORS, SHAPES, WORDS, Scene, first_scenes, pick

PHRASE_HEADS = {**HEADS, "cell": CELLS}
NUM_CAPTIONER_IMAGES = 32  # per micro-batch, for the captioning loss


class BindingTask:
    """Cross-entropy of what each phrase says, read from its last word's state.

    The captioner's own loss goes on beside it.
    """

    name = "binding"
    fit_settings = FitSettings(
        num_steps=1_600, batch_size=32, num_parallel=2, learning_rate=1e-3, ema_decay=0.997
    )

    def __init__(self, joint_folder: Path) -> None:
        torch.manual_seed(self.fit_settings.seed)
        self.model = LLMDiffusion.from_pretrained(joint_folder)
        self.encoder = self.model.encoder
        self.encoder.model.model.visual.requires_grad_(False)
        self.heads = ReadOut(LLM_WIDTH, PHRASE_HEADS)
        self.modules: dict[str, nn.Module] = {"captioner": self.encoder.model, "heads": self.heads}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.fit_settings.batch_size, seed=2)
        rng = random.Random(f"binding {step}")
        with torch.autocast("cpu", torch.bfloat16):
            logits, labels = self._read_phrases(scenes, rng)
            captioner_loss, metrics = caption_and_answer_loss(
                self.encoder, scenes[:NUM_CAPTIONER_IMAGES], rng
            )
        losses = [_cross_entropy(logits[kind], labels[kind]) for kind in PHRASE_HEADS]
        binding_loss = torch.stack(losses).sum()
        return binding_loss + captioner_loss, {"bound": binding_loss.item(), **metrics}

    def _read_phrases(
        self, scenes: list[Scene], rng: random.Random
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits at the states that must name something, and their labels."""
        texts = [
            caption(s, "exhaustive" if rng.random() < 0.5 else pick(rng, LEVELS), rng)
            for s in scenes
        ]
        states, mask = self.encoder.text_states(texts)
        rows, columns, phrases = [], [], []
        for row, text in enumerate(texts):
            tokens = self.encoder.chat([{"role": "generate", "content": text}])
            start = tokens.index(self.encoder.tokenize(text)[0])
            last = int(mask[row].sum()) - 1 - start
            background = read_caption(text).background
            by_place = phrases_by_place(text.split())
            by_place[last] = {"background": background} if background else {}
            rows += [row] * len(by_place)
            columns += [start + place for place in by_place]
            phrases += by_place.values()
        labels = {
            kind: torch.tensor([names.index(p[kind]) if kind in p else NOTHING for p in phrases])
            for kind, names in PHRASE_HEADS.items()
        }
        return self.heads.read(states[rows, columns]), labels

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        scenes = first_scenes("validation", 200)
        logits, labels = self._read_phrases(scenes, random.Random("binding evaluation"))
        shares = {f"bound_{kind}": share for kind, share in shares_right(logits, labels).items()}
        return {**shares, **captioner_quality(self.encoder, scenes)}

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


def phrases_by_place(words: list[str]) -> dict[int, dict[str, str]]:
    """What each phrase has said so far, at its words for a shape, a cell or a rendered word."""
    phrases: dict[int, dict[str, str]] = {}
    phrase: dict[str, str] = {}
    for place, word in enumerate(words):
        if word in SIZE_OF or (word in COLORS and "content" in phrase):
            phrase = {}
        if word in SIZE_OF:
            phrase["size"] = SIZE_OF[word]
        elif word in COLORS:
            phrase["color"] = word
        elif word in SHAPES:
            phrase["content"] = word
        elif word in WORDS and words[place - 1] == "word":
            phrase = {"content": "word", "word": word}
        elif word in CELLS and "content" in phrase:
            phrase["cell"] = word
        else:
            continue
        if "content" in phrase:
            phrases[place] = dict(phrase)
    return phrases


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if (labels == NOTHING).all():
        return logits.float().sum() * 0
    return nn.functional.cross_entropy(logits.float(), labels)
