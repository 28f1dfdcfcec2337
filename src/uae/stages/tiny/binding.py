"""The captioner's text states, before they condition the decoder alone: they learn to say which words belong together.

The decoder's attention knows no order of words, so what a phrase says of one object must meet in one state. Large
language models bring that along; the tiny one, trained on next words only, did not: after 128k samples its decoder
painted 1 % of objects right. Here the state at each word for a cell must name, under one linear layer, that cell and
what it holds (its shape, colour and size came before), and the last state the background. The layer is thrown away.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn

from uae.models.llm_diffusion import LLMDiffusion
from uae.models.tiny import LLM_WIDTH
from uae.scenes.language import caption
from uae.scenes.scene import CELLS, Scene, scene_at
from uae.stages.fit import Recipe
from uae.stages.tiny.captioner import caption_and_answer_loss, measure_captions, measure_questions
from uae.stages.tiny.data import train_scenes
from uae.stages.tiny.vision import HEADS, NOTHING, ReadOut, cell_labels

READ = {**HEADS, "cell": CELLS}
NUM_CAPTIONER_IMAGES = 12  # per micro-batch, for the captioning loss


class BindingTask:
    """Cross-entropy of what each phrase says, read from its last word's state, beside the captioner's own loss."""

    name = "binding"
    recipe = Recipe(num_steps=300, batch_size=32, num_parallel=2, learning_rate=1e-3, warmup_steps=50, ema_decay=0.99)

    def __init__(self, joint_folder: Path) -> None:
        torch.manual_seed(self.recipe.seed)
        self.model = LLMDiffusion.from_pretrained(joint_folder)
        self.encoder = self.model.encoder
        self.encoder.model.model.visual.requires_grad_(False)
        self.heads = ReadOut(LLM_WIDTH, READ)
        self.modules: dict[str, nn.Module] = {"captioner": self.encoder.model, "heads": self.heads}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.recipe.batch_size, seed=2)
        rng = random.Random(f"binding {step}")
        with torch.autocast("cpu", torch.bfloat16):
            logits, labels = self._read(scenes, rng)
            said, metrics = caption_and_answer_loss(self.encoder, scenes[:NUM_CAPTIONER_IMAGES], rng)
        bound = torch.stack([_cross_entropy(logits[name], labels[name]) for name in READ]).sum()
        return bound + said, {"bound": bound.item(), **metrics}

    def _read(self, scenes: list[Scene], rng: random.Random) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits at the states of cell words and last words, and their labels."""
        texts = [caption(scene, "exhaustive", rng) for scene in scenes]
        states, _ = self.encoder.text_states(texts)
        where = [(b, at, cell) for b, text in enumerate(texts) for at, cell in self._places(text)]
        row, at, cell = torch.tensor(where).T
        labels = {name: values[row, cell.clamp(min=0)] for name, values in cell_labels(scenes).items()}
        labels["cell"] = cell
        is_last = cell < 0
        labels = {
            name: values.masked_fill(is_last != (name == "background"), NOTHING) for name, values in labels.items()
        }
        return self.heads.read(states[row, at]), labels

    def _places(self, text: str) -> list[tuple[int, int]]:
        """Token positions of a text's cell words with their cells, and the last position with cell -1."""
        ids = self.encoder.chat([{"role": "generate", "content": text}])
        cells = {token: cell for cell, name in enumerate(CELLS) for token in self.encoder.tokenize(name)}
        return [(i, cells[token]) for i, token in enumerate(ids) if token in cells] + [(len(ids) - 1, -1)]

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        scenes = [scene_at("validation", i) for i in range(200)]
        logits, labels = self._read(scenes, random.Random("binding evaluation"))
        right = {name: (logits[name].argmax(-1) == labels[name])[labels[name] != NOTHING] for name in READ}
        bound = {f"bound_{name}": values.float().mean().item() for name, values in right.items()}
        return {
            **bound,
            "question_accuracy": measure_questions(self.encoder, scenes, per_scene=3)["all"],
            "detailed_recall": measure_captions(self.encoder, scenes, "detailed")["exact_recall"],
        }

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if (labels == NOTHING).all():
        return logits.float().sum() * 0
    return nn.functional.cross_entropy(logits.float(), labels)
