"""The one policy-gradient loss, for caption tokens, image tokens and denoising steps alike.

Unified-GRPO (arXiv 2509.09666), that is GRPO (arXiv 2402.03300), over the G action sequences y_i of
one input x:

    J = E[ 1/G Σ_i 1/|y_i| Σ_t ( g_it - β KL_it ) ]
    g_it = min(ρ_it A_i, clip(ρ_it, 1 - ε_low, 1 + ε_high) A_i)
    ρ_it = π(y_it | x, y_i<t) / π_old(y_it | x, y_i<t)

and the loss is -J. The KL sits inside the sum over actions and comes with the policy's
``Evaluation``: k3 for tokens, closed form for denoising steps. Variants, by their TRL names:
``dapo`` (arXiv 2503.14476) and ``dr_grpo`` (arXiv 2503.20783) replace the weight 1/(B |y_i|) of an
action, GSPO (arXiv 2507.18071) replaces ρ_it by one ratio per sequence.

Deviation: a log-ratio above 20 nats counts as 20, as its exp would overflow. Such an action is no
gradient's reason, as where dual-clip PPO clips it (arXiv 1912.09729), and is counted. The k3 KL is
bounded alike (``utils/ratios.py``).

Suffixes: B = P*G sequences, T actions. ``mask`` is True where an action was the policy's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from uae.rl.advantages import RewardScale
from uae.types import Evaluation
from uae.utils.ranges import ABOVE_0, AT_LEAST_0, check_ranges
from uae.utils.ratios import ALMOST_LARGEST_K3, MAX_LOG_RATIO, bounded

Normalization = Literal["grpo", "dapo", "dr_grpo"]
RatioLevel = Literal["token", "sequence"]


@dataclass(frozen=True)
class Objective:
    """What Unified-GRPO maximises. The defaults are the paper's where it speaks."""

    clip_eps_low: float = 0.2
    """The ratio is clipped below at 1 - clip_eps_low; 1e9 on both sides turns clipping off (as
    T2I-R1)."""
    clip_eps_high: float = 0.2
    """The ratio is clipped above at 1 + clip_eps_high; DAPO raises it (0.28) to let rare actions
    grow."""
    kl_coef: float = 1e-6
    """β, the weight of the KL to the frozen reference; at 0 no reference is evaluated."""
    normalization: Normalization = "grpo"
    """An action's weight: `grpo` mean per sequence then over sequences, `dapo` one mean over all
    actions, `dr_grpo` a constant, batch times maximum length, so that length earns no bias."""
    ratio_level: RatioLevel = "token"
    """`token`: one ratio per action. `sequence`: their geometric mean over the sequence (GSPO), of
    captions and of image tokens apart where both are learnt."""
    scale_rewards: RewardScale = "group"
    """What divides the centred rewards: the std of the `group`, of the whole `batch`, or nothing
    (`none`)."""
    advantage_clamp: float | None = None
    """Advantages are clamped to ± this value (Flow-GRPO: 5)."""

    def __post_init__(self) -> None:
        positive = dict.fromkeys(("clip_eps_low", "clip_eps_high", "advantage_clamp"), ABOVE_0)
        check_ranges(self, positive | {"kl_coef": AT_LEAST_0})
        for name, kind in (
            ("normalization", Normalization),
            ("ratio_level", RatioLevel),
            ("scale_rewards", RewardScale),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(kind))}; got "
                    f"{getattr(self, name)!r}"
                )


@dataclass(frozen=True)
class BatchCounts:
    """The denominators of the whole optimiser step, so that the losses of its micro-batches, and
    of its processes, simply add up."""

    num_sequences: int
    num_actions: int
    max_length: int
    """The cap on actions of a trajectory."""
    num_trajectory_actions: int
    """Actions of whole trajectories; more than ``num_actions`` where another segment belongs to
    them."""

    @classmethod
    def of(cls, mask_BT: Bool[Tensor, "B T"], max_length: int | None = None) -> BatchCounts:
        """Counts of this batch; ``max_length`` is the cap on actions where T was trimmed below
        it."""
        num_actions = int(mask_BT.sum())
        return cls(len(mask_BT), num_actions, max_length or mask_BT.shape[1], num_actions)


def grpo_loss(
    evaluation: Evaluation,
    old_log_probs_BT: Float[Tensor, "B T"],
    advantages_B: Float[Tensor, " B"],
    mask_BT: Bool[Tensor, "B T"],
    objective: Objective,
    counts: BatchCounts | None = None,
    lengths_B: Float[Tensor, " B"] | None = None,
    pull_coef: float = 0.0,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """-J and its metrics. ``counts`` describe the whole step when this is one of its micro-batches;
    ``lengths_B`` are the |y_i| where these actions are only a segment of their trajectories.
    ``pull_coef`` times the evaluation's pull, if it has one, is added for each action."""
    counts = counts or BatchCounts.of(mask_BT)
    advantages_B1 = rearrange(advantages_B, "B -> B 1")
    log_ratio_BT = torch.where(
        mask_BT, evaluation.log_probs.float() - old_log_probs_BT.float(), 0.0
    )
    if objective.ratio_level == "sequence":
        log_ratio_BT = _sequence_mean(log_ratio_BT, mask_BT).expand_as(log_ratio_BT)
    ratio_BT = bounded(log_ratio_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - objective.clip_eps_low, 1 + objective.clip_eps_high)
    gain_BT = torch.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
    if objective.kl_coef > 0:
        if evaluation.kl is None:
            raise ValueError(
                f"kl_coef is {objective.kl_coef} but the policy was evaluated without with_kl=True"
            )
        gain_BT = gain_BT - objective.kl_coef * torch.where(mask_BT, evaluation.kl.float(), 0.0)
    weights_BT = action_weights(mask_BT, objective, counts, lengths_B)
    loss = -(gain_BT * weights_BT).sum()
    if evaluation.pull is not None:
        loss = loss + pull_coef * (weights_BT * evaluation.pull).sum()
    return loss, _metrics(loss, evaluation, log_ratio_BT, advantages_B1, mask_BT, objective, counts)


def action_weights(
    mask_BT: Bool[Tensor, "B T"],
    objective: Objective,
    counts: BatchCounts,
    lengths_B: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, "B T"]:
    """The weight of each action in the loss; zero where masked, so an empty caption contributes
    nothing."""
    mask = mask_BT.float()
    lengths = mask.sum(dim=1) if lengths_B is None else lengths_B
    match objective.normalization:
        case "grpo":
            return mask / rearrange(lengths, "B -> B 1").clamp(min=1) / counts.num_sequences
        case "dapo":
            return mask / max(counts.num_trajectory_actions, 1)
        case "dr_grpo":
            return mask / (counts.num_sequences * counts.max_length)


def combine_metrics(parts: list[dict[str, float]]) -> dict[str, float]:
    """The step's metrics from those of its micro-batches: maxima by max, all others by sum."""
    return {
        name: (max if name.endswith("_max") else sum)(part[name] for part in parts)
        for name in parts[0]
    }


def _sequence_mean(
    values_BT: Float[Tensor, "B T"], mask_BT: Bool[Tensor, "B T"]
) -> Float[Tensor, "B 1"]:
    return values_BT.sum(dim=1, keepdim=True) / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)


@torch.no_grad()
def _metrics(
    loss: Tensor,
    evaluation: Evaluation,
    log_ratio_BT: Tensor,
    advantages_B1: Tensor,
    mask_BT: Tensor,
    objective: Objective,
    counts: BatchCounts,
) -> dict[str, float]:
    """Shares of the step's means over actions: summed over micro-batches they are the means."""

    def share(values_BT: Tensor) -> Tensor:
        return torch.where(mask_BT, values_BT.float(), 0.0).sum() / max(counts.num_actions, 1)

    bounded_BT = bounded(log_ratio_BT)
    ratio_BT = bounded_BT.exp()
    is_low_BT = (ratio_BT < 1 - objective.clip_eps_low) & (advantages_B1 < 0)
    is_high_BT = (ratio_BT > 1 + objective.clip_eps_high) & (advantages_B1 > 0)
    metrics = {
        "loss": loss,
        "clip_frac": share(is_low_BT | is_high_BT),
        "clip_frac_low": share(is_low_BT),
        "clip_frac_high": share(is_high_BT),
        "ratio_mean": share(ratio_BT),
        "ratio_max": torch.where(mask_BT, ratio_BT, 0.0).max(),
        "kl_old": share(torch.expm1(bounded_BT) - bounded_BT),
        "ratio_bounded_frac": share(log_ratio_BT > MAX_LOG_RATIO),
    }
    if evaluation.entropy is not None:
        metrics["entropy"] = share(evaluation.entropy)
    if evaluation.kl is not None:
        metrics["kl"] = share(evaluation.kl)
        metrics["kl_bounded_frac"] = share(evaluation.kl > ALMOST_LARGEST_K3)
    values = torch.stack(list(metrics.values())).tolist()  # one transfer from the device
    return dict(zip(metrics, values, strict=True))
