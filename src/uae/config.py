"""Settings shared by training, benchmark and commands: frozen dataclasses, one docstring per field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import tyro

Conditioning = Literal["text", "hidden"]
TextEncoder = Literal["policy", "reference"]
Sampler = Literal["ode", "sde", "cps"]
KLForm = Literal["published", "exact"]


def _weights(words: list[str]) -> dict[str, float]:
    if len(words) % 2:
        raise ValueError(f"expected NAME WEIGHT, pair by pair, got {' '.join(words)}")
    return {name: float(weight) for name, weight in zip(words[::2], words[1::2], strict=True)}


RewardWeights = Annotated[
    dict[str, float],
    tyro.constructors.PrimitiveConstructorSpec(  # `--rewards clip 0.5 my_rewards:likeness 0.5`: any names
        nargs="*",
        metavar="NAME WEIGHT …",
        instance_from_str=_weights,
        is_instance=lambda found: isinstance(found, dict),
        str_from_instance=lambda weights: [str(word) for pair in weights.items() for word in pair],
    ),
]


@dataclass(frozen=True)
class CaptionSettings:
    """How captions are made."""

    instruction: str = "describe the image"
    """What the encoder is asked."""
    temperature: float = 1.0
    """Of sampling; 0 is greedy."""
    max_new_tokens: int = 40
    """The cap on caption tokens; captions it cuts are counted as truncated."""


@dataclass(frozen=True)
class DecodeSettings:
    """How captions become images."""

    num_steps: int = 10
    """Steps of the ODE of a diffusion decoder; an autoregressive one takes a step for each of its image tokens."""
    sampler: Sampler = "ode"
    """Of a diffusion decoder. `sde` (Flow-GRPO) and `cps` draw noise in each step, so that steps have probabilities to
    learn from; they are for training, benchmarks always take the `ode`."""
    noise_level: float = 0.7
    """How much noise `sde` and `cps` draw (a)."""
    window_start: int = 0
    """The first step that draws noise; those outside the window are the ODE's."""
    window_size: int | None = None
    """Steps that draw noise (Flow-GRPO-Fast); by default all from the first."""
    kl_form: KLForm = "published"
    """The KL of a denoising step: `published` leaves the step's length out of the variance, `exact` does not."""
    temperature: float = 1.0
    """Of image tokens, where the decoder is autoregressive; 0 is greedy."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is none and costs one pass a step instead of two."""
    height: int = 48
    """Pixels."""
    width: int = 48
    """Pixels."""
    micro_batch: int = 64
    """Images decoded at a time."""


# --- what a model does by itself, and what a user wants otherwise ----------------------------------------------

IN_DETAIL = CaptionSettings(instruction="Describe this image in detail.", temperature=0.0, max_new_tokens=512)
"""How a real model is asked for captions where nothing else is said."""


@dataclass(frozen=True)
class CaptionOptions:
    """What to do otherwise than the model does by itself."""

    instruction: str | None = None
    """What the encoder is asked."""
    temperature: float | None = None
    """Of sampling; 0 is greedy."""
    max_new_tokens: int | None = None
    """The cap on caption tokens."""


@dataclass(frozen=True)
class DecodeOptions:
    """What to do otherwise than the model does by itself."""

    num_steps: int | None = None
    """Steps of a diffusion decoder."""
    guidance_scale: float | None = None
    """Classifier-free guidance; 1 is none."""
    temperature: float | None = None
    """Of image tokens; 0 is greedy."""
    height: int | None = None
    """Pixels."""
    width: int | None = None
    """Pixels."""
    micro_batch: int | None = None
    """Images decoded at a time."""


Settings = TypeVar("Settings", CaptionSettings, DecodeSettings)


def changed(settings: Settings, options: CaptionOptions | DecodeOptions) -> Settings:
    """The settings, but for the options that are given."""
    return replace(settings, **{name: value for name, value in vars(options).items() if value is not None})


def settings_in(saved: Mapping[str, Any]) -> dict[str, Any]:
    """``captioning`` and ``decoding``, if a model's ``uae.json`` says them."""
    kinds = {"captioning": CaptionSettings, "decoding": DecodeSettings}
    return {name: kind(**saved[name]) for name, kind in kinds.items() if name in saved}
