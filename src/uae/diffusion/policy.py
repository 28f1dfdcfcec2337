"""Denoising as a policy: the random steps of a path are its actions, and can be scored again
(Flow-GRPO)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from uae.config import KLForm
from uae.diffusion.sampling import Velocity
from uae.diffusion.stochastic import Gaussian, Stochastic, gaussian_kl, log_prob, step_distribution
from uae.diffusion.texts import TextEmbeds, batches_of_texts
from uae.types import Evaluation, Rollout
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


@dataclass(frozen=True)
class FlowContext:
    """What B paths are conditioned on. Their random steps alone are kept: W of them, between W + 1
    sigmas."""

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
    reference: Callable[[], AbstractContextManager],
    *,
    with_kl: bool,
) -> Evaluation:
    """Log-probability of each random step now, and the KL of its Gaussian to the reference's;
    ``rollout.actions`` are latents ``[B, W + 1, c, h, w]``. Gradients flow, but not through
    guidance's unconditional half."""
    context: FlowContext = rollout.context
    log_probs, kl, order = [], [], []
    for rows, texts in context.batches():
        velocity = field(texts, context.negative, context.guidance_scale, detach_unconditional=True)
        path = rollout.actions[rows]
        times = range(path.shape[1] - 1)
        steps = [_step(velocity, path, t, context) for t in track(times, "scoring", "steps")]
        kind = context.stochastic.kind
        scores = [log_prob(path[:, t + 1], step, kind) for t, step in enumerate(steps)]
        log_probs.append(torch.stack(scores, 1))
        if with_kl:
            with torch.no_grad(), reference():
                before = [_step(velocity, path, t, context).mean for t in range(len(steps))]
            pairs = zip(steps, before, strict=True)
            kl.append(torch.stack([gaussian_kl(s, mean, context.kl_form) for s, mean in pairs], 1))
        order.append(rows)
    back = torch.cat(order).argsort()
    return Evaluation(torch.cat(log_probs)[back], None, torch.cat(kl)[back] if with_kl else None)


def _step(velocity: Velocity, path: Tensor, t: int, context: FlowContext) -> Gaussian:
    latents, sigma = path[:, t], context.sigmas[t].to(path).expand(len(path))
    if torch.is_grad_enabled() and path.shape[1] - 1 > KEPT_STEPS:
        v = checkpoint(velocity, latents, sigma, use_reentrant=False)
    else:
        v = velocity(latents, sigma)
    levels = context.sigmas.tolist()
    return step_distribution(latents, v, levels[t], levels[t + 1], context.stochastic)
