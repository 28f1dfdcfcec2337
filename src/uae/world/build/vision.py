"""The captioner's vision tower, before it meets the language model: name what each of the nine
cells shows.

Real vision-language models start from a vision tower trained before; so does the tiny one. Left to
captions alone, it takes colour and place within 80k images but shape and size not at all. Its
merged tokens are the cells of the grid, so one linear layer reads from each: what is there
(nothing, a shape, a word), its colour and size, which word, and the background. The layer is thrown
away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from einops import reduce, repeat
from torch import Tensor, nn

from uae.models.encoders.causal import CausalCaptioner
from uae.models.janus import Janus
from uae.models.llm_diffusion import LLMDiffusion
from uae.stages.fit import FitSettings
from uae.world.data import pictures, train_scenes
from uae.world.models import LLM_WIDTH, build_captioner
from uae.world.scene import BACKGROUNDS, COLORS, GRID, SHAPES, SIZES, WORDS, Scene, scene_at

NOTHING = -100  # the label that cross-entropy skips
HEADS = {
    "content": ("nothing", *SHAPES, "word"),
    "color": tuple(COLORS),
    "size": tuple(SIZES),
    "word": WORDS,
    "background": tuple(BACKGROUNDS),
}


class ReadOut(nn.Linear):
    """One linear layer that names classes of several kinds."""

    def __init__(self, width: int, classes: Mapping[str, Sequence[str]]) -> None:
        super().__init__(width, sum(len(names) for names in classes.values()))
        self.sizes = {kind: len(names) for kind, names in classes.items()}

    def read(self, states: Tensor) -> dict[str, Tensor]:
        """Logits by kind."""
        return dict(
            zip(self.sizes, self(states).split(list(self.sizes.values()), dim=-1), strict=True)
        )


class VisionTask:
    """Cross-entropy of each cell's attributes, those that it has."""

    name = "vision"
    fit_settings = FitSettings(
        num_steps=600, batch_size=64, learning_rate=2e-3, warmup_steps=60, ema_decay=0.98
    )

    captioner: CausalCaptioner

    def __init__(self) -> None:
        torch.manual_seed(self.fit_settings.seed)
        self.captioner = build_captioner()
        self.heads = ReadOut(LLM_WIDTH, HEADS)
        self.modules: dict[str, nn.Module] = {
            "visual": self.captioner.model.model.visual,
            "heads": self.heads,
        }

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = train_scenes(step, self.fit_settings.batch_size)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = self._tokens(scenes)
            logits, labels = self.heads.read(by_cell(tokens)), cell_labels(scenes)
        losses = {
            name: nn.functional.cross_entropy(
                logits[name].float().flatten(0, 1), labels[name].flatten()
            )
            for name in HEADS
            if (labels[name] != NOTHING).any()
        }
        losses |= self.further_losses(tokens, scenes)
        return torch.stack(list(losses.values())).sum(), {
            name: loss.item() for name, loss in losses.items()
        }

    def further_losses(self, tokens: Tensor, scenes: list[Scene]) -> dict[str, Tensor]:
        """Beside the naming of attributes, none."""
        return {}

    def _tokens(self, scenes: list[Scene]) -> Tensor:
        features, _ = self.captioner.see(list(pictures(scenes)))
        return torch.stack(features)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        scenes = [scene_at("validation", i) for i in range(256)]
        logits, labels = self.heads.read(by_cell(self._tokens(scenes))), cell_labels(scenes)
        shown = {name: labels[name] != NOTHING for name in HEADS}
        return {
            name: (logits[name].argmax(-1) == labels[name])[shown[name]].float().mean().item()
            for name in HEADS
        }

    def export(self, folder: Path) -> None:
        self.captioner.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


class JanusVisionTask(VisionTask):
    """The same for UMM-2, whose tower sees sixteen tokens where UMM-1's sees one; each is to be
    like that one, for the language model that reads them begins as UMM-1's."""

    name = "janus_vision"
    fit_settings = FitSettings(
        num_steps=1_500,
        batch_size=32,
        num_parallel=2,
        learning_rate=2e-3,
        warmup_steps=60,
        ema_decay=0.98,
    )  # shapes take longest: they lie across its tokens

    def __init__(self, vq_folder: Path, umm1_folder: Path) -> None:
        torch.manual_seed(self.fit_settings.seed)
        self.teacher = LLMDiffusion.from_pretrained(umm1_folder).encoder.requires_grad_(False)
        self.captioner = Janus.from_pretrained(vq_folder)
        self.heads = ReadOut(LLM_WIDTH, HEADS)
        model = self.captioner.model.model
        self.modules = {"vision": model.vision_model, "aligner": model.aligner, "heads": self.heads}

    def further_losses(self, tokens: Tensor, scenes: list[Scene]) -> dict[str, Tensor]:
        """Mean squared distance to UMM-1's token of the same cell, over the variance of those."""
        features, _ = self.teacher.see(list(pictures(scenes)))
        wanted = torch.stack(features).float()
        side = int(tokens.shape[1] ** 0.5) // GRID
        copies = repeat(wanted, "b (gy gx) d -> b (gy y gx x) d", gy=GRID, y=side, x=side)
        return {"unlike": (tokens.float() - copies).square().mean() / wanted.var()}


def by_cell(tokens: Tensor) -> Tensor:
    """``[B, N, D]`` in rows of a square to ``[B, 9, D]``: the mean of each cell's tokens."""
    side = int(tokens.shape[1] ** 0.5) // GRID
    return reduce(
        tokens, "b (gy y gx x) d -> b (gy gx) d", "mean", gy=GRID, gx=GRID, y=side, x=side
    )


def cell_labels(scenes: list[Scene]) -> dict[str, Tensor]:
    """Class of each cell by head, ``[B, 9]``; ``NOTHING`` where a head does not apply."""
    labels = {name: torch.full((len(scenes), GRID * GRID), NOTHING) for name in HEADS}
    labels["content"].fill_(0)
    for b, scene in enumerate(scenes):
        labels["background"][b] = HEADS["background"].index(scene.background)
        for o in scene.objects:
            for name, value in (("content", o.shape), ("color", o.color), ("size", o.size)):
                labels[name][b, o.cell] = HEADS[name].index(value)
        if scene.word:
            labels["content"][b, scene.word.cell] = HEADS["content"].index("word")
            labels["word"][b, scene.word.cell] = WORDS.index(scene.word.text)
    return labels
