"""Sequences of tokens as actions: log-probabilities, draws, padding, the k3 KL, and their
evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from uae.types import Evaluation, Rollout
from uae.utils.ratios import bounded


def log_softmax(logits: Float[Tensor, "*B V"], temperature: float) -> Float[Tensor, "*B V"]:
    """In fp32, of the distribution sampled from; greedy decoding (temperature 0) scores at
    temperature 1."""
    return torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)


def draw(log_probs: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Inverse-CDF sampling: the first token whose cumulative probability exceeds the draw in [0,
    1)."""
    cumulative = log_probs.exp().cumsum(-1)
    token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    return token.clamp_max(log_probs.shape[-1] - 1)


def k3_kl(
    log_probs: Float[Tensor, "B T"], ref_log_probs: Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Schulman's k3 estimate of KL(π || π_ref) from actions of π: e^d - d - 1 with d = log
    π_ref - log π."""
    log_ratio = bounded(ref_log_probs - log_probs)
    return torch.expm1(log_ratio) - log_ratio


def cut_inside(row: list[int], empty: list[int], max_length: int | None) -> list[int]:
    """At most so many tokens, by leaving out the last of what the template holds; empty: the
    template of nothing."""
    if max_length is None or len(row) <= max_length:
        return row
    before = next(
        (i for i, (a, b) in enumerate(zip(row, empty, strict=False)) if a != b), len(empty)
    )
    after = empty[before:]
    return [*row[: max(max_length - len(after), before)], *after]


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"], device: torch.device
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Rows of one length, and where they hold tokens."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(length - len(row), None) if side == "left" else slice(len(row))
        ids[i, at] = torch.tensor(row)
        mask[i, at] = True
    return ids.to(device), mask.to(device)


def token_evaluation(
    scores: Callable[[], Float[Tensor, "B T V"]],
    rollout: Rollout,
    reference: Callable[[], AbstractContextManager],
    with_kl: bool,
) -> Evaluation:
    """What a token policy answers: ``scores`` gives log-probabilities over the vocabulary at each
    action."""
    chosen = rollout.actions[..., None]
    now = scores()
    entropy = -(now.detach().exp() * now.detach()).sum(-1)
    log_probs = now.gather(-1, chosen)[..., 0]
    if not with_kl:
        return Evaluation(log_probs, entropy)
    with torch.no_grad(), reference():
        before = scores().gather(-1, chosen)[..., 0]
    return Evaluation(log_probs, entropy, k3_kl(log_probs, before))
