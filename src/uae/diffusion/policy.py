"""Denoising as a policy: the random steps of a path are its actions, and can be scored again
(Flow-GRPO); or finished latents are all that is kept, to be noised again (``forward.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from uae.config import KLForm
from uae.diffusion.forward import mean_square, norm_ratio
from uae.diffusion.sampling import Velocity
from uae.diffusion.stochastic import Gaussian, Stochastic, gaussian_kl, log_prob, step_distribution
from uae.diffusion.texts import TextEmbeds, batches_of_texts
from uae.types import Evaluation, Policy, Rollout
from uae.utils.progress import track

# up to so many steps keep their activations for the backward pass; of more, each is run again
KEPT_STEPS = 2


@runtime_checkable
class GuidedField(Protocol):
    """A decoder's velocity under texts, led away from a negative one."""

    def __call__(
        self,
        texts: TextEmbeds,
        negative: TextEmbeds | None,
        guidance_scale: float,
        *,
        detach_unconditional: bool = False,
    ) -> Velocity: ...


Weights = Callable[[], AbstractContextManager]
"""Other weights than now: those of the network in such a context."""


@runtime_checkable
class VelocityPolicy(Policy, Protocol):
    """A decoder whose velocity can be asked for anywhere, as it is and as it was."""

    def evaluate(
        self, rollout: Rollout, *, with_kl: bool, old: Weights | None = None
    ) -> Evaluation:
        """``Policy.evaluate``, with the pull to the ``old`` weights if there are any."""
        ...

    def predict(
        self,
        context: FlowContext,
        latents: Float[Tensor, "B c h w"],
        sigma: Float[Tensor, " B"],
    ) -> Float[Tensor, "B c h w"]:
        """The velocity at these latents under the texts of ``context``."""
        ...

    def reference(self) -> AbstractContextManager:
        """In this context the network is as it was before training."""
        ...


@dataclass(frozen=True)
class FlowContext:
    """What B paths are conditioned on. Their random steps alone are kept: W of them, between W + 1
    sigmas. Of finished latents alone, the sigmas are all of the path's."""

    embeds: tuple[Float[Tensor, "_ E"], ...]
    """Of each text, in any lengths: the positions that are attended to."""
    text_of: Int[Tensor, " B"]
    """Which of them each path shows."""
    negative: TextEmbeds | None
    """What guidance leads away from."""
    guidance_scale: float
    sigmas: Float[Tensor, " W_plus_1"]
    stochastic: Stochastic
    kl_form: KLForm = "published"
    has_text_mask: bool = False
    """Texts of any lengths may share a batch."""

    def select(self, index: Int[Tensor, " b"]) -> FlowContext:
        return replace(self, text_of=self.text_of[index])

    def batches(self) -> Iterator[tuple[Int[Tensor, " b"], TextEmbeds]]:
        """Paths whose texts may share a batch, and these."""
        lengths = torch.tensor([len(self.embeds[i]) for i in self.text_of.tolist()])
        for rows in batches_of_texts(lengths, self.has_text_mask):
            texts = [self.embeds[i] for i in self.text_of[rows].tolist()]
            yield rows, TextEmbeds.of_rows(texts)


def evaluate_path(
    field: GuidedField,
    rollout: Rollout,
    reference: Weights,
    *,
    with_kl: bool,
    old: Weights | None = None,
) -> Evaluation:
    """Log-probability of each random step now, and the KL of its Gaussian to the reference's;
    ``rollout.actions`` are latents ``[B, W + 1, c, h, w]``. Gradients flow, but not through
    guidance's unconditional half."""
    context: FlowContext = rollout.context
    parts: list[dict[str, Tensor]] = []
    order = []
    for rows, texts in context.batches():
        velocity = field(texts, context.negative, context.guidance_scale, detach_unconditional=True)
        path = rollout.actions[rows]
        times = range(path.shape[1] - 1)
        steps = [_step(velocity, path, t, context) for t in track(times, "scoring", "steps")]
        kind = context.stochastic.kind
        scores = [log_prob(path[:, t + 1], step.next, kind) for t, step in enumerate(steps)]
        part = {"log_probs": torch.stack(scores, 1)}
        if with_kl:
            with torch.no_grad(), reference():
                before = [_step(velocity, path, t, context) for t in times]
            part |= _compared_with_reference(steps, before, context.kl_form)
        if old is not None:
            with torch.no_grad(), old():
                pulls_to = [_step(velocity, path, t, context).velocity for t in times]
            pairs = zip(steps, pulls_to, strict=True)
            part["pull"] = torch.stack([mean_square(s.velocity - v) for s, v in pairs], 1)
        parts.append(part)
        order.append(rows)
    back = torch.cat(order).argsort()
    whole = {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}
    return Evaluation(entropy=None, **whole)


def velocity_at(
    field: GuidedField,
    context: FlowContext,
    latents: Float[Tensor, "B c h w"],
    sigma: Float[Tensor, " B"],
) -> Float[Tensor, "B c h w"]:
    """The velocity of each path's text at these latents, each at its own level."""
    velocities, order = [], []
    for rows, texts in context.batches():
        velocity = field(texts, context.negative, context.guidance_scale)
        velocities.append(velocity(latents[rows], sigma[rows]))
        order.append(rows)
    return torch.cat(velocities)[torch.cat(order).argsort()]


class _Step(NamedTuple):
    next: Gaussian
    velocity: Float[Tensor, "N c h w"]


def _compared_with_reference(
    steps: Sequence[_Step], before: Sequence[_Step], form: KLForm
) -> dict[str, Tensor]:
    pairs = list(zip(steps, before, strict=True))
    return {
        "kl": torch.stack([gaussian_kl(s.next, b.next.mean, form) for s, b in pairs], 1),
        "norm_ratio": torch.stack([norm_ratio(s.velocity, b.velocity) for s, b in pairs], 1),
    }


def _step(velocity: Velocity, path: Tensor, t: int, context: FlowContext) -> _Step:
    latents, sigma = path[:, t], context.sigmas[t].to(path).expand(len(path))
    if torch.is_grad_enabled() and path.shape[1] - 1 > KEPT_STEPS:
        v = checkpoint(velocity, latents, sigma, use_reentrant=False)
    else:
        v = velocity(latents, sigma)
    levels = context.sigmas.tolist()
    return _Step(step_distribution(latents, v, levels[t], levels[t + 1], context.stochastic), v)
