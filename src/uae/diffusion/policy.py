"""Denoising as a policy: the random steps of a path are its actions, and can be scored again
(Flow-GRPO)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from uae.config import KLForm
from uae.diffusion.sampling import ConditionalVelocity, Velocity, guided
from uae.diffusion.stochastic import Gaussian, Stochastic, gaussian_kl, log_prob, step_distribution
from uae.types import Evaluation, Rollout
from uae.utils.progress import track

# up to so many steps keep their activations for the backward pass; of more, each is run again
KEPT_STEPS = 2


@dataclass(frozen=True)
class FlowContext:
    """What B paths are conditioned on. Their random steps alone are kept: W of them, between W + 1
    sigmas."""

    embeds: tuple[Float[Tensor, "_ E"], ...]
    """Of each text, in any lengths."""
    text_of: Int[Tensor, " B"]
    """Which of them each path shows."""
    negative: Float[Tensor, "1 _ E"] | None
    """What guidance leads away from."""
    guidance_scale: float
    sigmas: Float[Tensor, " W_plus_1"]
    how: Stochastic
    kl_form: KLForm = "published"

    def select(self, index: Int[Tensor, " b"]) -> FlowContext:
        return replace(self, text_of=self.text_of[index])

    def of_one_length(self) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, "b T E"]]]:
        """Paths whose texts have one length, and these: SD3 attends to padding, so there must be
        none."""
        lengths = torch.tensor([len(self.embeds[i]) for i in self.text_of.tolist()])
        for length in lengths.unique():
            rows = (lengths == length).nonzero()[:, 0]
            yield rows, torch.stack([self.embeds[i] for i in self.text_of[rows].tolist()])


def evaluate_path(
    velocity: ConditionalVelocity,
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
    for rows, embeds in context.of_one_length():
        field = guided(
            velocity, embeds, context.negative, context.guidance_scale, detach_unconditional=True
        )
        path = rollout.actions[rows]
        times = range(path.shape[1] - 1)
        steps = [_step(field, path, t, context) for t in track(times, "scoring", "steps")]
        log_probs.append(
            torch.stack(
                [log_prob(path[:, t + 1], s, context.how.kind) for t, s in enumerate(steps)], 1
            )
        )
        if with_kl:
            with torch.no_grad(), reference():
                before = [_step(field, path, t, context).mean for t in range(len(steps))]
            pairs = zip(steps, before, strict=True)
            kl.append(torch.stack([gaussian_kl(s, mean, context.kl_form) for s, mean in pairs], 1))
        order.append(rows)
    back = torch.cat(order).argsort()
    return Evaluation(torch.cat(log_probs)[back], None, torch.cat(kl)[back] if with_kl else None)


def _step(field: Velocity, path: Tensor, t: int, context: FlowContext) -> Gaussian:
    latents, sigma = path[:, t], context.sigmas[t].to(path).expand(len(path))
    if torch.is_grad_enabled() and path.shape[1] - 1 > KEPT_STEPS:
        velocity = checkpoint(field, latents, sigma, use_reentrant=False)
    else:
        velocity = field(latents, sigma)
    levels = context.sigmas.tolist()
    return step_distribution(latents, velocity, levels[t], levels[t + 1], context.how)
