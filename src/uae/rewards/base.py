"""Rewards composed: a weighted sum that keeps each component's values and stops on the first
failure.

``R = Σ_c w_c R_c``. A reward is any callable of the ``Reward`` signature (``uae.types``); one that
raises, answers in the wrong shape or with a value that is not finite stops the run with its name,
it never counts as zero. Truth values and counts are numbers, whatever device they come on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from uae.types import Prompt
from uae.utils.progress import phase, track

Images = Tensor | Sequence[Tensor]  # [P, 3, h, w], or P images [3, h, w] of mixed sizes
Component = Callable[..., Tensor]  # the signature of ``uae.types.Reward``


class RewardError(RuntimeError):
    """A reward failed; the message names it and the cause is chained."""


class WeightedSum:
    """``{name: (weight, reward)}`` as one ``Reward``.

    After each call ``breakdown`` holds every component's own values ``[P*G*K]``, unweighted and
    without gradient, for the log. A component of weight 0 is computed and logged but does not
    count: a held-out backbone, say.
    """

    def __init__(self, components: Mapping[str, tuple[float, Component]]) -> None:
        if not components:
            raise ValueError("expected at least one reward, got none")
        self.components = dict(components)
        self.breakdown: dict[str, Float[Tensor, " B"]] = {}

    @property
    def held_out(self) -> list[str]:
        """Components that are computed but do not count."""
        return [name for name, (weight, _) in self.components.items() if not weight]

    def __call__(
        self,
        sources: Images,
        captions: list[str],
        reconstructions: Float[Tensor, "B 3 H W"],
        prompts: Sequence[Prompt] = (),
    ) -> Float[Tensor, " B"]:
        """prompts: those that ``captions`` are the texts of, where there are no sources."""
        check_groups(len(prompts) or len(sources), len(captions), len(reconstructions))
        total, self.breakdown = torch.zeros(len(reconstructions), device=reconstructions.device), {}
        for name, (weight, reward) in track(self.components.items(), "scoring", "rewards"):
            with phase(name):
                values = checked_values(name, reward, sources, captions, reconstructions, prompts)
            self.breakdown[name] = values.detach()
            total = total + weight * values
        return total


def checked_values(
    name: str,
    reward: Component,
    sources: Images,
    captions: list[str],
    reconstructions: Tensor,
    prompts: Sequence[Prompt] = (),
) -> Tensor:
    """The reward's values as fp32 numbers where the pictures are, or a ``RewardError`` that names
    it."""
    more = {"prompts": prompts} if takes_prompts(reward) else {}
    try:
        values = reward(sources, captions, reconstructions, **more)
    except Exception as error:
        raise RewardError(f"reward {name} raised {type(error).__name__}: {error}") from error
    expected = (len(reconstructions),)
    if not isinstance(values, Tensor) or tuple(values.shape) != expected:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise RewardError(
            f"reward {name}: expected a tensor of shape {expected}, one value for each "
            f"reconstruction, got {got}"
        )
    if values.is_complex():
        raise RewardError(f"reward {name}: expected real values, got {values.dtype}")
    values = values.to(reconstructions.device, torch.float32)  # from truth values and counts too
    not_finite = (~values.isfinite()).nonzero().flatten().tolist()
    if not_finite:
        raise RewardError(
            f"reward {name}: expected finite values, got {values[not_finite[0]].item()} for "
            f"reconstruction {not_finite[0]} ({len(not_finite)} of {len(values)} are not finite)"
        )
    return values


def takes_prompts(reward: Component) -> bool:
    """Whether it has a parameter ``prompts`` beside the three of every reward."""
    try:
        names = list(inspect.signature(reward).parameters)
    except (TypeError, ValueError):  # of functions written in C
        return False
    return "prompts" in names[3:]


def check_groups(num_sources: int, num_captions: int, num_reconstructions: int) -> None:
    """P sources or prompts, P*G captions, P*G*K reconstructions."""
    if (
        not num_sources
        or num_captions % num_sources
        or not num_captions
        or num_reconstructions % num_captions
    ):
        raise ValueError(
            f"expected P sources, P*G captions and P*G*K reconstructions, got {num_sources}, "
            f"{num_captions} and {num_reconstructions}"
        )
