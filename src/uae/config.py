"""Settings shared by training, benchmark and commands: frozen dataclasses, one docstring per field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Conditioning = Literal["text", "hidden"]
TextEncoder = Literal["policy", "reference"]
Sampler = Literal["ode", "sde", "cps"]
KLForm = Literal["published", "exact"]


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
