"""A third model family in one file: it names the colour of an image, and paints the colour it is
told.

Everything that ``uae`` does with a unified model, it does with this one: Unified-GRPO teaches it to
name colours by the likeness of what it paints to what it saw. ``docs/add_a_model.md`` walks through
it. Run it, and then any command with what it leaves:

    cd examples && python third_family.py
    PYTHONPATH=. uae reconstruct photo.jpg --model color_namer
"""

from __future__ import annotations

import uae  # noqa: F401 - before torch, which reads how its threads are to wait

# isort: split
import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uae.config import CaptionSettings, DecodeSettings
from uae.models.encoders.tokens import draw, log_softmax, token_evaluation
from uae.rewards.base import WeightedSum
from uae.rl.config import TrainConfig
from uae.rl.train import train
from uae.types import Captions, Evaluation, Reconstructions, Rollout
from uae.utils.seed import sequence_keys, uniforms

PALETTE = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.7, 0.2),
    "blue": (0.1, 0.2, 0.9),
    "yellow": (0.9, 0.9, 0.1),
    "cyan": (0.1, 0.8, 0.9),
}
NAMES, UNKNOWN = list(PALETTE), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class MeanColors:
    """What captions are conditioned on: the mean colour of each caption's image, ``[B, 3]``."""

    colors: Tensor
    temperature: float

    def select(self, index: Tensor) -> MeanColors:
        return MeanColors(self.colors[index], self.temperature)


class ColorNamer(nn.Module):
    """One linear layer that names a mean colour in one word; its decoder fills the picture with the
    word's colour."""

    family = "third_family:ColorNamer"
    captioning = CaptionSettings(temperature=0.0)  # how it is benchmarked
    decoding = DecodeSettings()

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, len(NAMES))
        nn.init.zeros_(self.head.weight)  # at first it knows nothing
        nn.init.zeros_(self.head.bias)
        self.start = copy.deepcopy(self.head).requires_grad_(False)

    # --- understanding: a policy over caption tokens ---

    @property
    def encoder(self) -> ColorNamer:
        return self

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def named_trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def caption(
        self,
        images: Sequence[Tensor],
        settings: CaptionSettings,
        *,
        group_size: int = 1,
        seed: int = 0,
        step: int = 0,
        keys: Sequence[int] | None = None,
    ) -> Captions:
        colors = torch.stack([image.mean((1, 2)) for image in images]).repeat_interleave(
            group_size, 0
        )
        context = MeanColors(colors, settings.temperature)
        with torch.no_grad():
            scores = self.scores(context)[:, 0]
        draws = uniforms(seed, step, sequence_keys(keys, len(images), group_size), "caption", 1)[
            :, 0
        ]
        tokens = scores.argmax(-1) if settings.temperature == 0 else draw(scores, draws)
        log_probs = scores.gather(-1, tokens[:, None])
        rollout = Rollout(
            tokens[:, None], log_probs, torch.ones_like(log_probs, dtype=torch.bool), context
        )
        return Captions(
            [NAMES[t] for t in tokens],
            rollout,
            group_size,
            torch.zeros(len(tokens), dtype=torch.bool),
        )

    def scores(self, context: MeanColors) -> Tensor:
        """``[B, 1, V]`` log-probabilities of the one word."""
        return log_softmax(self.head(context.colors), context.temperature)[:, None]

    def evaluate(self, rollout: Rollout, *, with_kl: bool) -> Evaluation:
        return token_evaluation(
            lambda: self.scores(rollout.context), rollout, self.reference, with_kl
        )

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Answers as it was before training."""
        now, self.head = self.head, self.start
        try:
            yield
        finally:
            self.head = now

    def answer(
        self, images: Sequence[Tensor], questions: Sequence[str], *, max_new_tokens: int = 16
    ) -> list[str]:
        return self.caption(images, CaptionSettings(temperature=0.0)).texts

    # --- generation: frozen, so its reconstructions come without a rollout ---

    @property
    def decoder(self) -> None:
        return None

    def reconstruct(
        self,
        captions: Captions,
        settings: DecodeSettings,
        *,
        group_size: int = 1,
        seed: int = 0,
        step: int = 0,
        keys: Sequence[int] | None = None,
    ) -> Reconstructions:
        return self.generate(captions.texts, settings, group_size=group_size)

    def generate(
        self,
        texts: Sequence[str],
        settings: DecodeSettings,
        *,
        group_size: int = 1,
        seed: int = 0,
        step: int = 0,
    ) -> Reconstructions:
        colors = torch.tensor([PALETTE.get(text, UNKNOWN) for text in texts]).repeat_interleave(
            group_size, 0
        )
        return Reconstructions(
            colors[:, :, None, None].expand(-1, -1, settings.height, settings.width), group_size
        )

    def begin_training(
        self, lora_rank: int, *, captions: bool, decoding: DecodeSettings | None
    ) -> None:
        self.head.requires_grad_(captions)

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(self.head.state_dict(), Path(folder) / "head.safetensors")
        (Path(folder) / "uae.json").write_text(json.dumps({"family": self.family}))

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> ColorNamer:
        model = cls()
        model.head.load_state_dict(load_file(Path(folder) / "head.safetensors"))
        model.start = copy.deepcopy(model.head).requires_grad_(False)
        return model.to(dtype)


# --- a world of plain colours, and a reward ------------------------------------------------------


class PlainColors:
    """Training images of one colour each; a step's batch is a function of the step alone."""

    def batch(self, step: int, num_images: int) -> list[Tensor]:
        chosen = [(step * num_images + i) % len(NAMES) for i in range(num_images)]
        return [torch.tensor(PALETTE[NAMES[i]])[:, None, None].expand(3, 48, 48) for i in chosen]

    def probe(self, num_images: int) -> list[Tensor]:
        return self.batch(0, num_images)


def likeness(sources: Sequence[Tensor], captions: list[str], reconstructions: Tensor) -> Tensor:
    """Minus the mean squared difference of pixels."""
    repeated = (
        torch.stack(list(sources))
        .repeat_interleave(len(reconstructions) // len(sources), 0)
        .to(reconstructions.device)
    )
    return -(repeated - reconstructions).square().mean((1, 2, 3))


def learn(folder: Path, num_steps: int = 80) -> ColorNamer:
    """Unified-GRPO, as for any other family."""
    config = TrainConfig(num_steps=num_steps, images_per_step=5, learning_rate=0.1, use_bf16=False)
    model = ColorNamer()
    train(
        model,
        WeightedSum({"likeness": (1.0, likeness)}),
        PlainColors(),
        config,
        folder,
        {"model": "color_namer"},
    )
    return model


if __name__ == "__main__":
    images, model = PlainColors().batch(0, len(NAMES)), learn(Path("color_namer/run"))
    print("it was shown", NAMES)
    print("it says     ", model.caption(images, model.captioning).texts)
    model.save_pretrained("color_namer")
