"""How a segment is learnt from, by the name in ``TrainConfig.decoder_update``: the loss of a
micro-batch in parts, each to be run backward before the next is made.

``policy_gradient``: log-probabilities of the actions (``losses.py``), and, for denoising steps, a
pull of the velocity to that of the old weights. ``nft`` and ``awm``: the forward process
(``diffusion/forward.py``), where finished latents are noised again by draws that are the same in
each update of a rollout.

Suffixes: B sequences of the step, b of a micro-batch, T actions, N times that a picture is noised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from uae.diffusion.forward import (
    Noised,
    awm_log_prob,
    awm_loss,
    awm_steps,
    nft_loss,
    nft_steps,
    norm_ratio,
)
from uae.diffusion.policy import FlowContext, FlowEvaluation, VelocityPolicy
from uae.diffusion.schedule import add_noise
from uae.models.base import UnifiedModel
from uae.rl.config import TrainConfig
from uae.rl.losses import action_weights, grpo_loss
from uae.rl.segments import Segment
from uae.types import Evaluation, Rollout
from uae.utils.optim import FastAverage
from uae.utils.seed import normals, uniforms

Part = tuple[Float[Tensor, ""], dict[str, float]]
"""A part of the step's loss, and of the step's metrics; both add up."""


@runtime_checkable
class Update(Protocol):
    """How one segment is learnt from."""

    @property
    def segment(self) -> Segment: ...

    def score(self, rows: Int[Tensor, " b"]) -> Float[Tensor, "b _"]:
        """Log-probabilities before the first update of several, which ratios compare with."""
        ...

    def losses(
        self, rows: Int[Tensor, " b"], before: Float[Tensor, "b _"] | None
    ) -> Iterator[Part]:
        """Of these sequences; ``before`` is what ``score`` said, None where it would be the
        same."""
        ...


@dataclass(frozen=True)
class PolicyGradient:
    """By the log-probabilities of a segment's actions."""

    segment: Segment
    pull_coef: float = 0.0
    old: FastAverage | None = None
    """The weights that the pull is to."""

    def score(self, rows: Tensor) -> Tensor:
        return self.segment.policy.evaluate(
            self.segment.rollout.select(rows), with_kl=False
        ).log_probs

    def losses(self, rows: Tensor, before: Tensor | None) -> Iterator[Part]:
        segment = self.segment
        rollout, lengths_B = segment.rollout.select(rows), segment.lengths_B[rows]
        evaluation = self._evaluate(rollout)
        log_probs_BT = evaluation.log_probs.detach()
        loss, metrics = grpo_loss(
            evaluation,
            log_probs_BT if before is None else before,
            segment.advantages_B[rows],
            rollout.mask,
            segment.objective,
            segment.counts,
            lengths_B,
        )
        num_actions = max(segment.counts.num_actions, 1)
        gap = (log_probs_BT - rollout.log_probs).abs()[rollout.mask].sum().item()
        metrics["log_prob_gap"] = gap / num_actions
        if isinstance(evaluation, FlowEvaluation):
            if evaluation.norm_ratio is not None:
                metrics["velocity_norm_ratio"] = evaluation.norm_ratio.sum().item() / num_actions
            if evaluation.pull is not None:
                weights = action_weights(rollout.mask, segment.objective, segment.counts, lengths_B)
                loss = loss + self.pull_coef * (weights * evaluation.pull).sum()
                metrics["pull"] = evaluation.pull.sum().item() / num_actions
                metrics["loss"] = loss.item()
        yield loss, metrics

    def _evaluate(self, rollout: Rollout) -> Evaluation:
        policy, with_kl = self.segment.policy, self.segment.objective.kl_coef > 0
        if self.old is None:
            return policy.evaluate(rollout, with_kl=with_kl)
        assert isinstance(policy, VelocityPolicy), "check_update"
        return policy.evaluate(rollout, with_kl=with_kl, old=self.old.in_place)


@dataclass(frozen=True)
class ForwardProcess:
    """By the velocities at finished latents that are noised again."""

    segment: Segment
    config: TrainConfig
    old: FastAverage
    step: int

    def score(self, rows: Tensor) -> Tensor:
        if self.config.decoder_update == "nft":
            return self.segment.rollout.log_probs[rows]  # of no actions
        alone = self._noised(rows, with_others=False)
        return torch.stack([self._log_prob(noised) for noised in alone], 1)

    def losses(self, rows: Tensor, before: Tensor | None) -> Iterator[Part]:
        advantages = self.segment.advantages_B[rows]
        for n, noised in enumerate(self._noised(rows)):
            if self.config.decoder_update == "nft":
                losses, parts = nft_loss(noised, advantages, self.config.nft)
            else:
                log_prob = self._log_prob(noised) if before is None else before[:, n]
                losses, parts = awm_loss(noised, log_prob, advantages, self.config.awm)
            parts["velocity_norm_ratio"] = norm_ratio(noised.velocity, noised.reference)
            yield self._shared(losses, parts)

    def _log_prob(self, noised: Noised) -> Tensor:
        return awm_log_prob(noised, self.config.awm).detach()

    def _shared(self, losses: Tensor, parts: dict[str, Tensor]) -> Part:
        """Shares of the step's means over pictures and times."""
        num_times = self._steps(torch.arange(1)).shape[1]
        loss, *means = (
            values.sum() / (self.segment.counts.num_sequences * num_times)
            for values in (losses, *parts.values())
        )
        values = torch.stack([loss, *means]).tolist()  # one transfer from the device
        return loss, dict(zip(("loss", *parts), values, strict=True))

    def _steps(self, rows: Tensor) -> Int[Tensor, "b N"]:
        """Whose times each picture is noised at."""
        context: FlowContext = self.segment.rollout.context
        num_steps, config = len(context.sigmas) - 1, self.config
        key = config.seed, self.step, rows, "times"
        if config.decoder_update == "nft":
            return nft_steps(uniforms(*key, num_steps), config.nft.num_times)
        draws = uniforms(*key, config.awm.num_times)
        return awm_steps(draws, num_steps, config.awm.time_fraction)

    def _noised(self, rows: Tensor, *, with_others: bool = True) -> Iterator[Noised]:
        """These pictures, once for each time, as they stand when asked for: gradients flow where
        they are enabled. ``with_others``: else the old and the reference velocity are no
        numbers."""
        policy, rollout = self.segment.policy, self.segment.rollout.select(rows)
        assert isinstance(policy, VelocityPolicy), "check_update"
        context, latents = rollout.context, rollout.actions
        sigmas_bN = context.sigmas[self._steps(rows)].to(latents)
        shape = sigmas_bN.shape[1], *latents.shape[1:]
        noise = normals(self.config.seed, self.step, rows, "forward", shape).to(latents)
        for n in range(len(noise[0])):
            sigma = sigmas_bN[:, n]
            points = context, add_noise(latents, noise[:, n], sigma), sigma
            old = reference = torch.full_like(latents, torch.nan)
            if with_others:
                with torch.no_grad(), self.old.in_place():
                    old = policy.predict(*points)
                with torch.no_grad(), policy.reference():
                    reference = policy.predict(*points)
            yield Noised(latents, noise[:, n], sigma, policy.predict(*points), old, reference)


def update_of(segment: Segment, config: TrainConfig, old: FastAverage | None, step: int) -> Update:
    """How this segment is learnt from."""
    if segment.name == "rl":
        return PolicyGradient(segment)
    if config.decoder_update != "policy_gradient":
        assert old is not None
        return ForwardProcess(segment, config, old, step)
    return PolicyGradient(segment, config.pull_coef, old if config.pull_coef else None)


def check_update(model: UnifiedModel, config: TrainConfig) -> None:
    """A ValueError where this model's decoder cannot learn so."""
    if config.uses_old_weights and not isinstance(model.decoder, VelocityPolicy):
        option = "pull-coef" if config.pull_coef else f"decoder-update {config.decoder_update}"
        raise ValueError(
            f"{option}: expected a decoder with a velocity, that is one by flow matching (umm1), "
            f"got {type(model).__name__} ({model.family}), which draws tokens; learn by "
            "policy_gradient, without a pull"
        )
