"""Signs that a reward is being gamed: numbers that are always logged, and a warning where held-out
rewards fall.

A policy that games its reward is seen in what was not asked for: captions that repeat themselves or
copy text out of the image, pictures that fill with edges or lose their colours, and backbones that
were not the reward going down while it goes up.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

NGRAM = 3
TRANSCRIBED = re.compile(
    r"[\"“][^\"”]+[\"”]|\bwords? \w+"
)  # quoted, or as the embedded world's captions say it
EDGE = 0.1  # of [0, 1], between neighbouring pixels
COLOR_LEVELS = 8  # per channel
WINDOW = 20  # steps compared with as many before them


def caption_signs(texts: Sequence[str]) -> dict[str, float]:
    """Means over captions: share of n-grams that the caption had before, and of characters that
    transcribe text."""
    return {
        "caption/repeated_frac": _mean(map(repeated_share, texts)),
        "caption/transcribed_frac": _mean(
            sum(map(len, TRANSCRIBED.findall(t))) / max(len(t), 1) for t in texts
        ),
    }


def repeated_share(text: str) -> float:
    """Of a text's n-grams, those that occurred before in it."""
    words = text.split()
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def image_signs(images: Float[Tensor, "B 3 h w"]) -> dict[str, float]:
    """Share of neighbouring pixels that differ visibly, and the entropy of each image's colours in
    bits (at most 9)."""
    images = images.detach().float().cpu()
    steps = torch.cat(
        [images.diff(dim=-1).abs().amax(1).flatten(), images.diff(dim=-2).abs().amax(1).flatten()]
    )
    levels = (images * COLOR_LEVELS).long().clamp(0, COLOR_LEVELS - 1)
    colors = (levels[:, 0] * COLOR_LEVELS + levels[:, 1]) * COLOR_LEVELS + levels[:, 2]
    return {
        "image/edge_density": (steps > EDGE).float().mean().item(),
        "image/color_entropy": _mean(map(_entropy, colors.flatten(1).tolist())),
    }


class HeldOutAlarm:
    """Warns, once for each, when a held-out reward falls while the reward rises; both by more than
    two standard errors between the last ``WINDOW`` steps and those before them."""

    def __init__(self, held_out: Iterable[str], past: Sequence[Mapping[str, Any]] = ()) -> None:
        self.names = [f"reward/{name}" for name in held_out]
        self.seen: deque[Mapping[str, Any]] = deque(past, maxlen=2 * WINDOW)
        self.warned: set[str] = set()

    def observe(self, metrics: Mapping[str, Any]) -> None:
        """One step's metrics."""
        self.seen.append(metrics)
        if len(self.seen) < 2 * WINDOW or self._trend("reward/total") < 2:
            return
        for name in self.names:
            if name not in self.warned and self._trend(name) < -2:
                self.warned.add(name)
                warnings.warn(
                    (
                        f"reward/total rises while {name}, which is held out, falls: the reward "
                        "may be being gamed. Look at the pictures; give the held-out backbone a "
                        "weight, or raise the KL coefficient"
                    ),
                    stacklevel=2,
                )

    def _trend(self, name: str) -> float:
        """The change, in standard errors."""
        values = torch.tensor([metrics[name] for metrics in self.seen], dtype=torch.float64)
        before, now = values.chunk(2)
        error = ((before.var() + now.var()) / WINDOW).sqrt()
        return ((now.mean() - before.mean()) / error.clamp(min=1e-12)).item()


def _entropy(values: Sequence[int]) -> float:
    shares = torch.tensor(list(Counter(values).values()), dtype=torch.float64) / len(values)
    return -(shares * shares.log2()).sum().item()


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
