"""The captioner's vision tower, before it meets the language model: it names what cells show.

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
from uae.world.scene import BACKGROUNDS, COLORS, GRID, SHAPES, SIZES, WORDS, Scene, first_scenes

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
        logits = self(states).split(list(self.sizes.values()), dim=-1)
        return dict(zip(self.sizes, logits, strict=True))


class VisionTask:
    """Cross-entropy of the attributes that each cell has."""

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
        metrics = {name: loss.item() for name, loss in losses.items()}
        return torch.stack(list(losses.values())).sum(), metrics

    def further_losses(self, tokens: Tensor, scenes: list[Scene]) -> dict[str, Tensor]:
        """Those beside the cells' attributes."""
        return {}

    def _tokens(self, scenes: list[Scene]) -> Tensor:
        features, _ = self.captioner.see(list(pictures(scenes)))
        return torch.stack(features)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        scenes = first_scenes("validation", 256)
        return shares_right(self.heads.read(by_cell(self._tokens(scenes))), cell_labels(scenes))

    def export(self, folder: Path) -> None:
        self.captioner.save_pretrained(folder)

    def after_step(self, step: int) -> None:
        pass


class JanusVisionTask(VisionTask):
    """The same for UMM-2, whose tower has sixteen tokens where UMM-1's has one.

    Each is to be like that one, for the language model that reads them begins as UMM-1's.
    """

    name = "janus_vision"
    fit_settings = FitSettings(
        num_steps=1_500,  # shapes take longest: they lie across its tokens
        batch_size=32,
        num_parallel=2,
        learning_rate=2e-3,
        warmup_steps=60,
        ema_decay=0.98,
    )

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
        cells = torch.stack(features).float()
        distances = tokens.float() - to_tokens(cells, tokens.shape[1])
        return {"unlike": distances.square().mean() / cells.var()}


def by_cell(tokens: Tensor) -> Tensor:
    """``[B, N, D]`` in rows of a square to ``[B, 9, D]``: the mean of each cell's tokens."""
    side = int(tokens.shape[1] ** 0.5) // GRID
    pattern = "b (gy y gx x) d -> b (gy gx) d"
    return reduce(tokens, pattern, "mean", gy=GRID, gx=GRID, y=side, x=side)


def to_tokens(cells: Tensor, num_tokens: int) -> Tensor:
    """``[B, 9, …]`` to ``[B, N, …]``: what is true of a cell, for each of its tokens."""
    side = int(num_tokens**0.5) // GRID
    return repeat(cells, "b (gy gx) ... -> b (gy y gx x) ...", gy=GRID, y=side, x=side)


def shares_right(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float]:
    """By kind, the share of labels that are read right."""
    is_right = {kind: logits[kind].argmax(-1) == labels[kind] for kind in logits}
    return {
        kind: values[labels[kind] != NOTHING].float().mean().item()
        for kind, values in is_right.items()
    }


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
