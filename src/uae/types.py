"""The vocabulary: what passes between encoder, decoder, reward and loss.

Caption tokens, autoregressive image tokens and stochastic denoising steps are all *sequences of
actions with log-probabilities*, so one ``Rollout`` serves them all.

Shape legend, used everywhere: P images, G captions per image, K reconstructions per caption, T
action steps, B = P*G (or P*G*K) sequences, V vocabulary, L latent tokens, D width, ``c h w``
pixels. Sequences of one image are adjacent: index ``b = (p*G + g)*K + k``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class Rollout:
    """B sequences of T actions, with all that is needed to score them again.

    actions:   token ids ``[B, T]``; latents along a denoising path ``[B, T+1, ...]``, of which each
               action leads from one to the next; or, where there are no actions (T = 0), the
               finished latents ``[B, ...]``.
    log_probs: ``[B, T]`` under the distribution that ``Policy.evaluate`` scores (temperature
               included).
    mask:      ``[B, T]``, True where the action was chosen by the policy (not padding).
    context:   what the policy conditioned on; opaque to everything but that policy. It must support
               ``context.select(index)`` with a ``[b]`` long tensor of sequence indices.
    """

    actions: Tensor
    log_probs: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    context: Any

    def __len__(self) -> int:
        return self.mask.shape[0]

    def select(self, index: Int[Tensor, " b"]) -> Rollout:
        """The sub-batch of these sequences, e.g. a micro-batch."""
        return Rollout(
            self.actions[index], self.log_probs[index], self.mask[index], self.context.select(index)
        )


@dataclass
class Evaluation:
    """A policy's answer about a rollout's actions; gradients flow through ``log_probs``, ``kl``
    and ``pull``.

    log_probs: ``[B, T]`` log-probability of each action now.
    entropy:   ``[B, T]`` of the action distribution, no gradient; None where it is a constant
               (denoising steps).
    kl:        ``[B, T]`` estimate of KL(policy || reference) per action (k3 for tokens, closed
               form for denoising steps), or None when no reference was asked for.
    pull:      ``[B, T]`` mean squared distance of a denoising step's velocity to that of the old
               weights, or None when none were given.
    norm_ratio: ``[B, T]`` of that velocity to the reference's, no gradient, or None.
    """

    log_probs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"] | None
    kl: Float[Tensor, "B T"] | None = None
    pull: Float[Tensor, "B T"] | None = None
    norm_ratio: Float[Tensor, "B T"] | None = None


@dataclass
class Captions:
    """B = P*G captions of P images: their text and the actions that made it."""

    texts: list[str]
    rollout: Rollout
    group_size: int
    truncated: Bool[Tensor, " B"]  # the cap on new tokens came before the end token

    def __len__(self) -> int:
        return len(self.texts)


@dataclass
class Reconstructions:
    """B = P*G*K images in [0, 1], and what is learnt from: the actions that made them, or, of a
    deterministic ODE whose latents are kept, finished latents without actions (else None)."""

    images: Float[Tensor, "B 3 h w"]
    group_size: int
    rollout: Rollout | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # of how they were made, to be logged


class Ratio(NamedTuple):
    """A mean, or a share, before it is divided: parts of it add up, each over the other."""

    total: Float[Tensor, ""]
    """Differentiable."""
    size: int | float

    @property
    def value(self) -> Float[Tensor, ""]:
        return self.total / self.size


class RoundTrip(NamedTuple):
    """One image, what was said of it and what that became, to look at; images ``[3, h, w]`` in
    [0, 1]."""

    source: Tensor
    caption: str
    reconstruction: Tensor


@runtime_checkable
class Policy(Protocol):
    """Anything whose actions can be scored again: an encoder's tokens, a decoder's denoising
    steps."""

    def evaluate(self, rollout: Rollout, *, with_kl: bool) -> Evaluation:
        """Score the rollout's actions under the current weights."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def named_trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        """What an optimiser may change, by the names that checkpoints use."""
        ...


@runtime_checkable
class Reward(Protocol):
    """How good a reconstruction is. A new reward is one function of this signature.

    sources: P images ``[3, h, w]`` of any sizes, on the CPU, or none where prompts are painted;
    reconstructions ``[P*G*K, 3, h, w]`` in [0, 1], on the device that painted them; captions: P*G
    texts. Returns ``[P*G*K]`` real numbers; larger is better. A reward that fails must raise: it
    stops the run.

    A fourth parameter, if it is called ``prompts``, is given the P prompts that were painted, with
    what is known of them beside their text; none where images were captioned.
    """

    def __call__(
        self,
        sources: Sequence[Float[Tensor, "3 _ _"]],
        captions: list[str],
        reconstructions: Float[Tensor, "B 3 H W"],
    ) -> Float[Tensor, " B"]: ...


@runtime_checkable
class ImageSource(Protocol):
    """Training images; a step's batch is a function of the step alone."""

    def batch(self, step: int, num_images: int) -> list[Tensor]:
        """``num_images`` images ``[3, h, w]`` in [0, 1]."""
        ...

    def probe(self, num_images: int) -> list[Tensor]:
        """Images that no batch holds, always the same."""
        ...


@runtime_checkable
class Prompt(Protocol):
    """A text to paint. A source may know more of its prompts, for rewards that judge by that."""

    @property
    def text(self) -> str:
        """What is painted."""
        ...


@runtime_checkable
class PromptSource(Protocol):
    """Prompts to learn painting from, in place of images; a step's batch is a function of the step
    alone."""

    def batch(self, step: int, num_prompts: int) -> Sequence[Prompt]:
        """``num_prompts`` prompts."""
        ...

    def probe(self, num_prompts: int) -> Sequence[Prompt]:
        """Prompts that no batch holds, if there are others; always the same."""
        ...


@runtime_checkable
class PairSource(Protocol):
    """Pictures and their captions, to be learnt by matching; a step's are a function of the step
    alone."""

    def batch(self, step: int, num_pairs: int) -> tuple[Float[Tensor, "N 3 H W"], list[str]]:
        """``num_pairs`` pictures in [0, 1], and a caption of each."""
        ...


@runtime_checkable
class QuestionSource(Protocol):
    """Questions about images, whose answers training shall not change; a step's are a function of
    the step alone."""

    def batch(self, step: int, num_questions: int) -> tuple[list[Tensor], list[str]]:
        """``num_questions`` images ``[3, h, w]`` in [0, 1], and a question about each; one tensor
        may stand more than once."""
        ...


Batch = Sequence[Tensor | Prompt]
"""What a step learns from: P images, P prompts, or both."""
