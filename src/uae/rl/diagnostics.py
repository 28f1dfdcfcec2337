"""What is logged of a rollout, and the alarm when a reward is being gamed. Names are explained in
``docs/metrics.md``.

A policy that games its reward is seen in what was not asked for: captions that repeat themselves or
copy text out of the image, pictures that fill with edges or lose their colours, and backbones that
were not the reward going down while it goes up.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from uae.rewards.base import WeightedSum
from uae.types import Captions, Reconstructions
from uae.utils.metrics import read_metrics
from uae.utils.processes import add_up, gather_rows, is_main, mean_over_processes

NGRAM = 3
TRANSCRIBED = re.compile(r"[\"“][^\"”]+[\"”]|\bwords? \w+")
"""Text of the image: quoted, or as the embedded world's captions name it."""
EDGE = 0.1  # of [0, 1], between neighbouring pixels
COLOR_LEVELS = 8  # per channel
WINDOW = 20  # steps compared with as many before them


def of_all_processes(
    values: Float[Tensor, " B"], breakdown: Mapping[str, Tensor]
) -> tuple[Float[Tensor, " _"], dict[str, Tensor]]:
    """Rewards and their components, in the order of the step's images."""
    table = gather_rows(torch.stack([values, *breakdown.values()], 1))
    total, *components = table.unbind(1)
    return total, dict(zip(breakdown, components, strict=True))


def reward_metrics(
    rewards_PGK: Float[Tensor, "P G K"], breakdown: Mapping[str, Tensor]
) -> dict[str, float]:
    """Mean total, its spread within groups, the share of groups without any, and each component's
    mean."""
    per_caption_PG = rewards_PGK.mean(-1)
    spread_P = per_caption_PG.std(1) if per_caption_PG.shape[1] > 1 else rewards_PGK[:, 0].std(1)
    return {
        "reward/total": rewards_PGK.mean().item(),
        "reward/group_std": spread_P.mean().item(),
        "reward/tied_frac": (spread_P == 0).float().mean().item(),
        **{f"reward/{name}": values.mean().item() for name, values in breakdown.items()},
    }


def rollout_metrics(
    captions: Captions | None, reconstructions: Reconstructions
) -> dict[str, float]:
    """Of captions, if there are any, and of what was painted; the means over all processes."""
    metrics = caption_metrics(captions) if captions else {}
    metrics = metrics | image_signs(reconstructions.images) | reconstructions.metrics
    return mean_over_processes(metrics, len(reconstructions.images))


def caption_metrics(captions: Captions) -> dict[str, float]:
    """Length in tokens (end token included); shares cut at the cap, empty, and distinct within
    their group; signs of gaming."""
    lengths = captions.rollout.mask.sum(1).float()
    texts, group = captions.texts, captions.group_size
    distinct = [len(set(texts[i : i + group])) for i in range(0, len(texts), group)]
    return {
        "caption/tokens": lengths.mean().item(),
        "caption/truncated_frac": captions.truncated.float().mean().item(),
        "caption/empty_frac": sum(not text for text in texts) / len(texts),
        "caption/distinct_frac": sum(distinct) / len(texts),
        **caption_signs(texts),
    }


def caption_signs(texts: Sequence[str]) -> dict[str, float]:
    """Means over captions: share of n-grams that the caption had before, and of characters that
    transcribe text."""
    return {
        "caption/repeated_frac": _mean(map(_repeated_ngram_share, texts)),
        "caption/transcribed_frac": _mean(
            sum(map(len, TRANSCRIBED.findall(text))) / max(len(text), 1) for text in texts
        ),
    }


def _repeated_ngram_share(text: str) -> float:
    words = text.split()
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def image_signs(images: Float[Tensor, "B 3 h w"]) -> dict[str, float]:
    """Share of neighbouring pixels that differ visibly, and the entropy of each image's colours in
    bits (at most 9)."""
    images = images.detach().float().cpu()
    contrasts = torch.cat([images.diff(dim=dim).abs().amax(1).flatten() for dim in (-1, -2)])
    levels = (images * COLOR_LEVELS).long().clamp(0, COLOR_LEVELS - 1)
    colors = (levels[:, 0] * COLOR_LEVELS + levels[:, 1]) * COLOR_LEVELS + levels[:, 2]
    return {
        "image/edge_density": (contrasts > EDGE).float().mean().item(),
        "image/color_entropy": _mean(map(_entropy, colors.flatten(1).tolist())),
    }


def time_metrics(
    sampled: Sequence[tuple[Captions | None, Reconstructions]], phases: Mapping[str, float]
) -> dict[str, float]:
    """Seconds of the phases and of the whole step, of this process; caption tokens, if any, and
    pictures of all processes per second of it."""
    step_sec = sum(phases.values())
    metrics = {**phases, "time/step": step_sec}
    num_tokens = sum(captions.rollout.mask.sum().item() for captions, _ in sampled if captions)
    num_images = sum(len(reconstructions.images) for _, reconstructions in sampled)
    made = add_up({"tokens": num_tokens, "images": num_images})
    if made["tokens"]:
        metrics["time/tokens_per_sec"] = made["tokens"] / step_sec
    return metrics | {"time/images_per_sec": made["images"] / step_sec}


def held_out_alarms(rewards: Mapping[str, WeightedSum], log: Path) -> list[HeldOutAlarm]:
    """One for each reward, by the prefix of its metrics; ``log``: the run's so far."""
    past = read_metrics(log) if is_main() else []
    return [HeldOutAlarm(each.held_out, past, prefix) for prefix, each in rewards.items()]


class HeldOutAlarm:
    """Warns, once for each, when a held-out reward falls while the reward rises; both by more than
    two standard errors between the last ``WINDOW`` steps and those before them."""

    def __init__(
        self,
        held_out: Iterable[str],
        past: Sequence[Mapping[str, Any]] = (),
        prefix: str = "",
    ) -> None:
        """past: metrics of the steps so far. prefix: of the rewards' metrics."""
        self.total = f"{prefix}reward/total"
        self.names = [f"{prefix}reward/{name}" for name in held_out]
        self.history: deque[Mapping[str, Any]] = deque(past, maxlen=2 * WINDOW)
        self.warned: set[str] = set()

    def observe(self, metrics: Mapping[str, Any]) -> None:
        """One step's metrics."""
        self.history.append(metrics)
        if len(self.history) < 2 * WINDOW or self._trend(self.total) < 2:
            return
        for name in self.names:
            if name not in self.warned and self._trend(name) < -2:
                self.warned.add(name)
                warnings.warn(
                    (
                        f"{self.total} rises while {name}, which is held out, falls: the reward "
                        "may be being gamed. Look at the pictures; give the held-out backbone a "
                        "weight, or raise the KL coefficient"
                    ),
                    stacklevel=2,
                )

    def _trend(self, name: str) -> float:
        """The change, in standard errors."""
        values = torch.tensor([metrics[name] for metrics in self.history], dtype=torch.float64)
        before, now = values.chunk(2)
        error = ((before.var() + now.var()) / WINDOW).sqrt()
        return ((now.mean() - before.mean()) / error.clamp(min=1e-12)).item()


def _entropy(values: Sequence[int]) -> float:
    shares = torch.tensor(list(Counter(values).values()), dtype=torch.float64) / len(values)
    return -(shares * shares.log2()).sum().item()


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
