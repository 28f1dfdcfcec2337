"""How a segment is learnt from, by the name in ``TrainConfig.decoder_update``: the loss of a
micro-batch in parts, each to be run backward before the next is made.

``policy_gradient``: log-probabilities of the actions (``losses.py``), and, for denoising steps, a
pull of the velocity to that of the old weights. ``nft`` and ``awm``: the forward process
(``diffusion/forward.py``), where finished latents are noised again by draws that are the same in
each update of a rollout.

Suffixes: B sequences of the step, b of a micro-batch, T actions, N times that a picture is noised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from uae.diffusion.forward import (
    Losses,
    Noised,
    awm_log_prob,
    awm_loss,
    awm_steps,
    nft_loss,
    nft_steps,
    norm_ratio,
)
from uae.diffusion.policy import FlowContext, VelocityPolicy
from uae.diffusion.schedule import add_noise
from uae.models.base import Compilable, UnifiedModel
from uae.rl.config import TrainConfig
from uae.rl.losses import grpo_loss
from uae.rl.segments import Segment
from uae.types import Evaluation, Rollout
from uae.utils.device import can_compile
from uae.utils.optim import FastAverage
from uae.utils.seed import normals, uniforms

LossPart = tuple[Float[Tensor, ""], dict[str, float]]
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
    ) -> Iterator[LossPart]:
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

    def losses(self, rows: Tensor, before: Tensor | None) -> Iterator[LossPart]:
        segment = self.segment
        rollout = segment.rollout.select(rows)
        evaluation = self._evaluate(rollout)
        log_probs_BT = evaluation.log_probs.detach()
        loss, metrics = grpo_loss(
            evaluation,
            log_probs_BT if before is None else before,
            segment.advantages_B[rows],
            rollout.mask,
            segment.objective,
            segment.counts,
            segment.lengths_B[rows],
            self.pull_coef,
        )
        means = {
            "log_prob_gap": (log_probs_BT - rollout.log_probs).abs()[rollout.mask],
            "velocity_norm_ratio": evaluation.norm_ratio,
            "pull": evaluation.pull,
        }
        num_actions = max(segment.counts.num_actions, 1)
        for name, values in means.items():
            if values is not None:
                metrics[name] = values.sum().item() / num_actions
        yield loss, metrics

    def _evaluate(self, rollout: Rollout) -> Evaluation:
        policy, with_kl = self.segment.policy, self.segment.objective.kl_coef > 0
        if self.old is None:
            return policy.evaluate(rollout, with_kl=with_kl)
        assert isinstance(policy, VelocityPolicy), "check_update"
        return policy.evaluate(rollout, with_kl=with_kl, old=self.old.in_place)


@dataclass(frozen=True)
class ForwardProcess(ABC):
    """By the velocities at finished latents that are noised again."""

    segment: Segment
    config: TrainConfig
    old: FastAverage
    step: int

    @abstractmethod
    def score(self, rows: Tensor) -> Tensor: ...

    @abstractmethod
    def _steps(self, rows: Tensor, num_steps: int) -> Int[Tensor, "b N"]:
        """Whose times each picture is noised at."""

    @abstractmethod
    def _losses(
        self, noised: Noised, advantages: Tensor, before: Float[Tensor, "b N"] | None, n: int
    ) -> Losses:
        """Of pictures noised for the ``n``-th time."""

    def losses(self, rows: Tensor, before: Tensor | None) -> Iterator[LossPart]:
        context, latents, times = self._times(rows)
        for n, noised in enumerate(self._noised(context, latents, times)):
            losses, parts = self._losses(noised, self.segment.advantages_B[rows], before, n)
            parts["velocity_norm_ratio"] = norm_ratio(noised.velocity, noised.reference)
            yield self._shares(losses, parts, len(times))

    @property
    def _policy(self) -> VelocityPolicy:
        assert isinstance(self.segment.policy, VelocityPolicy), "check_update"
        return self.segment.policy

    def _keys(self, rows: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Of draws: the places of these pictures among those of all processes."""
        return rows + self.segment.first

    def _times(self, rows: Tensor) -> tuple[FlowContext, Tensor, list[tuple[Tensor, Tensor]]]:
        """These pictures, and for each time that they are noised, noise and level."""
        rollout = self.segment.rollout.select(rows)
        context, latents = rollout.context, rollout.actions
        steps_bN = self._steps(rows, len(context.sigmas) - 1)
        sigmas_bN = context.sigmas[steps_bN].to(latents)
        shape = sigmas_bN.shape[1], *latents.shape[1:]
        keys = self._keys(rows)
        noise = normals(self.config.seed, self.step, keys, "forward", shape).to(latents)
        return context, latents, [(noise[:, n], sigmas_bN[:, n]) for n in range(shape[0])]

    def _noised(
        self, context: FlowContext, latents: Tensor, times: Sequence[tuple[Tensor, Tensor]]
    ) -> Iterator[Noised]:
        """Each as it stands when asked for: gradients flow where they are enabled."""
        for noise, sigma in times:
            points = context, add_noise(latents, noise, sigma), sigma
            with torch.no_grad(), self.old.in_place():
                old = self._policy.predict(*points)
            with torch.no_grad(), self._policy.reference():
                reference = self._policy.predict(*points)
            yield Noised(latents, noise, sigma, self._policy.predict(*points), old, reference)

    def _shares(self, losses: Tensor, parts: dict[str, Tensor], num_times: int) -> LossPart:
        """Of the step's means over pictures and times."""
        loss, *means = (
            values.sum() / (self.segment.counts.num_sequences * num_times)
            for values in (losses, *parts.values())
        )
        values = torch.stack([loss, *means]).tolist()  # one transfer from the device
        return loss, dict(zip(("loss", *parts), values, strict=True))


class DiffusionNFT(ForwardProcess):
    """Positive and negative velocities around the old one; nothing has a probability."""

    def score(self, rows: Tensor) -> Tensor:
        return self.segment.rollout.log_probs[rows]  # of no actions

    def _steps(self, rows: Tensor, num_steps: int) -> Tensor:
        keys = self._keys(rows)
        draws = uniforms(self.config.seed, self.step, keys, "times", num_steps)
        return nft_steps(draws, self.config.nft.num_times)

    def _losses(self, noised: Noised, advantages: Tensor, before: Tensor | None, n: int) -> Losses:
        return nft_loss(noised, advantages, self.config.nft)


class AdvantageWeightedMatching(ForwardProcess):
    """The matching error as a log-probability."""

    def score(self, rows: Tensor) -> Tensor:
        context, latents, times = self._times(rows)
        return torch.stack(
            [
                awm_log_prob(
                    self._policy.predict(context, add_noise(latents, noise, sigma), sigma),
                    noise - latents,
                    sigma,
                    self.config.awm,
                )
                for noise, sigma in times
            ],
            1,
        ).detach()

    def _steps(self, rows: Tensor, num_steps: int) -> Tensor:
        awm = self.config.awm
        keys = self._keys(rows)
        draws = uniforms(self.config.seed, self.step, keys, "times", awm.num_times)
        return awm_steps(draws, num_steps, awm.time_fraction)

    def _losses(self, noised: Noised, advantages: Tensor, before: Tensor | None, n: int) -> Losses:
        return awm_loss(
            noised, None if before is None else before[:, n], advantages, self.config.awm
        )


FORWARD = {"nft": DiffusionNFT, "awm": AdvantageWeightedMatching}
"""Updates by the forward process, by their names in ``TrainConfig.decoder_update``."""


def update_of(segment: Segment, config: TrainConfig, old: FastAverage, step: int) -> Update:
    """How this segment is learnt from; ``old``: the decoder's old weights, where they are used."""
    if not segment.is_painting:
        return PolicyGradient(segment)
    if config.decoder_update in FORWARD:
        return FORWARD[config.decoder_update](segment, config, old, step)
    return PolicyGradient(segment, config.pull_coef, old if config.pull_coef else None)


def check_update(model: UnifiedModel, config: TrainConfig) -> None:
    """A ValueError where this model's decoder cannot learn so."""
    is_diffusion = isinstance(model.decoder, VelocityPolicy)
    is_plain_ode = config.decoding.sampler == "ode" and config.decoder_update not in FORWARD
    if config.matching_coef > 0 and is_diffusion and is_plain_ode:
        raise ValueError(
            "matching-coef: expected decoding.sampler sde or cps, or decoder-update nft or awm, "
            f"by which this decoder learns, got ode and {config.decoder_update}"
        )
    if config.compile_decoder and not isinstance(model.decoder, Compilable):
        raise ValueError(
            "compile-decoder: expected a decoder with a network of its own, that is one by flow "
            f"matching (umm1), got {type(model).__name__} ({model.family}); leave it out"
        )
    if config.compile_decoder and model.encoder.device.type == "cpu" and not can_compile():
        raise ValueError(
            "compile-decoder: expected a C++ compiler (g++ or clang++), found none; install one, "
            "or leave it out"
        )
    if config.uses_old_weights and not is_diffusion:
        option = "pull-coef" if config.pull_coef else f"decoder-update {config.decoder_update}"
        raise ValueError(
            f"{option}: expected a decoder with a velocity, that is one by flow matching (umm1), "
            f"got {type(model).__name__} ({model.family}), which draws tokens; learn by "
            "policy_gradient, without a pull"
        )


def decoder_code(model: UnifiedModel, config: TrainConfig) -> AbstractContextManager[None]:
    """A context in which the decoder runs as the settings say, compiled or not."""
    if not config.compile_decoder:
        return nullcontext()
    assert isinstance(model.decoder, Compilable), "check_update"
    return model.decoder.compiled()
