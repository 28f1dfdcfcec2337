"""Settings shared by training, benchmark and commands: frozen dataclasses, one docstring per
field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import tyro

from uae.utils.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Range, check_ranges, refuse_if

Conditioning = Literal["text", "hidden"]
TextEncoder = Literal["policy", "reference"]
Sampler = Literal["ode", "sde", "cps"]
KLForm = Literal["published", "exact"]

CAPTION_RANGES: dict[str, Range] = {"temperature": AT_LEAST_0, "max_new_tokens": AT_LEAST_1}
DECODE_RANGES: dict[str, Range] = {
    "num_steps": AT_LEAST_1,
    "guidance_scale": AT_LEAST_0,
    "temperature": AT_LEAST_0,
    "height": AT_LEAST_1,
    "width": AT_LEAST_1,
    "micro_batch": AT_LEAST_1,
}


def _weights(words: list[str]) -> dict[str, float]:
    if len(words) % 2:
        raise ValueError(f"expected NAME WEIGHT, pair by pair, got {' '.join(words)}")
    return {name: float(weight) for name, weight in zip(words[::2], words[1::2], strict=True)}


RewardWeights = Annotated[
    dict[str, float],
    # `--rewards clip 0.5 my_rewards:likeness 0.5`: any names
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME WEIGHT …",
        instance_from_str=_weights,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda weights: [str(word) for pair in weights.items() for word in pair],
    ),
]


def check_reward_weights(weights: Mapping[str, float]) -> None:
    """A ValueError where there is no reward to learn from."""
    wrong = [name for name, weight in weights.items() if not math.isfinite(weight)]
    refuse_if(
        (
            bool(wrong),
            (
                "rewards: expected finite weights, got "
                f"{', '.join(f'{n} {weights[n]}' for n in wrong)}"
            ),
        ),
        (
            not any(weights.values()),
            f"rewards: expected one of a weight other than 0 to learn from, got {dict(weights)}",
        ),
    )


@dataclass(frozen=True)
class CaptionSettings:
    """How captions are made."""

    instruction: str = "describe the image"
    """What the encoder is asked."""
    temperature: float = 1.0
    """Of sampling; 0 is greedy."""
    max_new_tokens: int = 40
    """The cap on caption tokens; captions it cuts are counted as truncated."""

    def __post_init__(self) -> None:
        check_ranges(self, CAPTION_RANGES)


@dataclass(frozen=True)
class DecodeSettings:
    """How captions become images."""

    num_steps: int = 10
    """Steps of the ODE of a diffusion decoder; an autoregressive one takes a step for each of its
    image tokens."""
    sampler: Sampler = "ode"
    """Of a diffusion decoder. `sde` (Flow-GRPO) and `cps` draw noise in each step, so that steps
    have probabilities to learn from; they are for training, benchmarks always take the `ode`."""
    noise_level: float = 0.7
    """How much noise `sde` and `cps` draw (a)."""
    window_start: int = 0
    """The first step that draws noise; those outside the window are the ODE's."""
    window_size: int | None = None
    """Steps that draw noise (Flow-GRPO-Fast); by default all from the first."""
    shared_noise: bool = False
    """Whether pictures of one text, where `sde` or `cps` paints them, start from the same noise:
    then they differ by what the policy drew alone."""
    keeps_latents: Annotated[bool, tyro.conf.Suppress] = False
    """Whether finished latents of the `ode` are kept to learn from without probabilities (a run's
    own choice, by `decoder-update`)."""
    kl_form: KLForm = "published"
    """The KL of a denoising step: `published` leaves the step's length out of the variance, `exact`
    does not."""
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

    @property
    def num_random_steps(self) -> int:
        """Steps that may draw noise: the last one of `cps` draws none."""
        return 0 if self.sampler == "ode" else self.num_steps - (self.sampler == "cps")

    @property
    def has_rollout(self) -> bool:
        """Whether a diffusion decoder can learn from what is painted so."""
        return self.sampler != "ode" or self.keeps_latents

    @property
    def has_window(self) -> bool:
        """Whether some of the steps that may draw noise are the ODE's."""
        return self.sampler != "ode" and self.window_size is not None

    def __post_init__(self) -> None:
        noise = {"noise_level": AT_LEAST_0 if self.sampler == "ode" else ABOVE_0}
        check_ranges(
            self, DECODE_RANGES | noise | {"window_start": AT_LEAST_0, "window_size": AT_LEAST_1}
        )
        limit = self.num_random_steps
        refuse_if(
            (
                self.sampler != "ode" and self.window_start >= limit,
                (
                    f"window-start: expected below {limit}, as no later of {self.num_steps} "
                    f"steps draws noise by {self.sampler}, got {self.window_start}"
                ),
            ),
            (
                self.sampler == "cps" and self.noise_level > 1,
                f"noise-level: expected at most 1 for cps, got {self.noise_level}",
            ),
        )


@dataclass(frozen=True)
class VLLMSettings:
    """An engine of vLLM that samples captions."""

    max_length: int = 4096
    """The most tokens of an image, its question and its caption together."""
    cache_gb: float = 4.0
    """Memory for keys and values, in GiB, beside a copy of the language model."""
    server: str = ""
    """A vLLM server of its own, such as `http://host:8000`, which gets the weights before each
    rollout; by default the engine is in the process that trains."""
    folder: str = ""
    """Where weights are handed to that server, which must see it too; by default in this machine's
    memory (`/dev/shm`)."""

    def __post_init__(self) -> None:
        check_ranges(self, {"max_length": AT_LEAST_1, "cache_gb": ABOVE_0})


# --- what a model does by itself, and what a user wants otherwise --------------------------------

IN_DETAIL = CaptionSettings(
    instruction="Describe this image in detail.", temperature=0.0, max_new_tokens=512
)
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

    def __post_init__(self) -> None:
        check_ranges(self, CAPTION_RANGES)


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

    def __post_init__(self) -> None:
        check_ranges(self, DECODE_RANGES)


Settings = TypeVar("Settings", CaptionSettings, DecodeSettings)


def changed(settings: Settings, options: CaptionOptions | DecodeOptions) -> Settings:
    """The settings, but for the options that are given."""
    return replace(
        settings, **{name: value for name, value in vars(options).items() if value is not None}
    )


def settings_in(saved: Mapping[str, Any]) -> dict[str, Any]:
    """``captioning`` and ``decoding``, if a model's ``uae.json`` says them."""
    kinds = {"captioning": CaptionSettings, "decoding": DecodeSettings}
    return {name: kind(**saved[name]) for name, kind in kinds.items() if name in saved}
