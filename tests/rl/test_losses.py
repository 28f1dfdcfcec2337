"""The loss against numbers worked out by hand, against a loop-by-loop reference, and under
micro-batching."""

import itertools
import math

import numpy as np
import pytest
import torch

from uae.models.encoders.tokens import k3_kl
from uae.rl.losses import BatchCounts, Objective, action_weights, combine_metrics, grpo_loss
from uae.types import Evaluation

VARIANTS = list(itertools.product(("grpo", "dapo", "dr_grpo"), ("token", "sequence")))


def reference_loss(log_probs, old, ref, advantages, mask, objective, max_length):
    """TRL's published definitions, action by action in numpy.

    grpo: mean over sequences of the mean over a sequence's active tokens; dapo: sum over the number
    of active tokens; dr_grpo: sum over batch size times maximum length. Importance ratio per token,
    or per sequence as the exponential of the mean log-ratio over active tokens.
    """
    total, num_active = 0.0, mask.sum()
    for i in range(len(mask)):
        active = [t for t in range(mask.shape[1]) if mask[i, t]]
        sequence_sum = 0.0
        for t in active:
            log_ratio = log_probs[i, t] - old[i, t]
            if objective.ratio_level == "sequence":
                log_ratio = sum(log_probs[i, s] - old[i, s] for s in active) / len(active)
            ratio = math.exp(log_ratio)
            clipped = min(max(ratio, 1 - objective.clip_eps_low), 1 + objective.clip_eps_high)
            d = ref[i, t] - log_probs[i, t]
            kl = math.exp(d) - d - 1
            sequence_sum += (
                -min(ratio * advantages[i], clipped * advantages[i]) + objective.kl_coef * kl
            )
        if objective.normalization == "grpo":
            total += sequence_sum / max(len(active), 1) / len(mask)
        elif objective.normalization == "dapo":
            total += sequence_sum / num_active
        else:
            total += sequence_sum / (len(mask) * max_length)
    return total


def make_batch(seed=0, B=6, T=7, spread=0.4):
    rng = np.random.default_rng(seed)
    log_probs = -rng.exponential(1.0, (B, T))
    old, ref = (log_probs + spread * rng.standard_normal((B, T)) for _ in range(2))
    mask = np.arange(T) < rng.integers(1, T + 1, (B, 1))
    mask[B // 2] = False  # an empty caption
    return log_probs, old, ref, rng.standard_normal(B), mask


def to_torch(log_probs, old, ref, advantages, mask):
    """In double, so that only the formula can differ; the loss itself computes in float32."""
    log_probs = torch.tensor(log_probs, dtype=torch.float32, requires_grad=True)
    evaluation = Evaluation(
        log_probs, torch.rand(mask.shape), k3_kl(log_probs, torch.tensor(ref, dtype=torch.float32))
    )
    old, advantages = (torch.tensor(x, dtype=torch.float32) for x in (old, advantages))
    return log_probs, (evaluation, old, advantages, torch.tensor(mask))


def test_clipped_objective_by_hand():
    ratio = torch.tensor([[1.5, 0.5], [1.5, 0.5]])
    evaluation = Evaluation(ratio.log(), torch.zeros(2, 2))
    advantages, mask = torch.tensor([2.0, -2.0]), torch.ones(2, 2, dtype=torch.bool)
    objective = Objective(clip_eps_low=0.2, clip_eps_high=0.3, kl_coef=0.0)
    loss, metrics = grpo_loss(evaluation, torch.zeros(2, 2), advantages, mask, objective)
    # A=+2: min(3, 2.6) + min(1, 1.6) = 3.6; A=-2: min(-3, -2.6) + min(-1, -1.6) = -4.6; J = (3.6 -
    # 4.6)/4.
    assert loss.item() == pytest.approx(0.25, abs=1e-6)
    assert metrics["clip_frac_high"] == pytest.approx(0.25)  # 1.5 with A > 0
    assert metrics["clip_frac_low"] == pytest.approx(0.25)  # 0.5 with A < 0
    assert metrics["clip_frac"] == pytest.approx(0.5)
    assert metrics["ratio_mean"] == pytest.approx(1.0)
    assert metrics["ratio_max"] == pytest.approx(1.5)
    # k3 of old against new: r - 1 - log r.
    expected = (0.5 - math.log(1.5) - 0.5 - math.log(0.5)) / 2
    assert metrics["kl_old"] == pytest.approx(expected, abs=1e-6)


def test_k3_kl_by_hand():
    kl = k3_kl(torch.tensor([[math.log(0.5), -1.0]]), torch.tensor([[math.log(0.25), -1.0]]))
    torch.testing.assert_close(
        kl, torch.tensor([[0.5 + math.log(2) - 1, 0.0]]), atol=1e-7, rtol=1e-6
    )


def test_k3_kl_is_unbiased():
    """Its mean under the policy is the true KL of two categorical distributions."""
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    k3 = k3_kl(p.log()[None], q.log()[None])[0]
    assert (p * k3).sum().item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-6)


def test_kl_is_inside_the_token_sum():
    """With zero advantage the loss is β times the per-sequence mean KL, then the mean over
    sequences."""
    kl = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    evaluation = Evaluation(torch.zeros(2, 3), torch.zeros(2, 3), kl)
    args = (evaluation, torch.zeros(2, 3), torch.zeros(2), mask)
    assert grpo_loss(*args, Objective(kl_coef=0.1))[0].item() == pytest.approx(0.1 * (1.5 + 4) / 2)
    assert grpo_loss(*args, Objective(kl_coef=0.1, normalization="dapo"))[
        0
    ].item() == pytest.approx(0.1 * 7 / 3)
    assert grpo_loss(*args, Objective(kl_coef=0.1, normalization="dr_grpo"))[
        0
    ].item() == pytest.approx(0.1 * 7 / 6)
    assert grpo_loss(*args, Objective(kl_coef=0.1))[1]["kl"] == pytest.approx(7 / 3)


@pytest.mark.parametrize(("normalization", "ratio_level"), VARIANTS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_reference(normalization, ratio_level, seed):
    objective = Objective(0.2, 0.28, 0.05, normalization, ratio_level)
    batch = make_batch(seed)
    log_probs, args = to_torch(*batch)
    loss, metrics = grpo_loss(*args, objective, BatchCounts.of(args[3], max_length=9))
    assert loss.item() == pytest.approx(reference_loss(*batch, objective, max_length=9), abs=1e-6)
    assert metrics["loss"] == loss.item()

    loss.backward()
    step = 1e-6
    for index in [(0, 0), (1, 0), (4, 0)]:  # gradient against central differences of the reference
        moved = [batch[0].copy(), batch[0].copy()]
        moved[0][index] += step
        moved[1][index] -= step
        up, down = (reference_loss(m, *batch[1:], objective, max_length=9) for m in moved)
        assert log_probs.grad[index].item() == pytest.approx((up - down) / (2 * step), abs=2e-6)


@pytest.mark.parametrize(("normalization", "ratio_level"), VARIANTS)
@pytest.mark.parametrize("sizes", [(1,) * 6, (2, 4), (3, 3), (5, 1)])
def test_micro_batches_add_up(normalization, ratio_level, sizes):
    objective = Objective(0.2, 0.28, 0.05, normalization, ratio_level)
    log_probs, (evaluation, old, advantages, mask) = to_torch(*make_batch(4))
    whole, whole_metrics = grpo_loss(evaluation, old, advantages, mask, objective)
    (whole_grad,) = torch.autograd.grad(whole, log_probs, retain_graph=True)

    counts, total, parts = BatchCounts.of(mask), torch.zeros(()), []
    for rows in torch.arange(6).split(sizes):
        part = Evaluation(evaluation.log_probs[rows], evaluation.entropy[rows], evaluation.kl[rows])
        loss, metrics = grpo_loss(part, old[rows], advantages[rows], mask[rows], objective, counts)
        total, parts = total + loss, [*parts, metrics]
    (grad,) = torch.autograd.grad(total, log_probs)
    assert total.item() == pytest.approx(whole.item(), abs=1e-6)
    torch.testing.assert_close(grad, whole_grad, atol=1e-7, rtol=1e-5)
    assert combine_metrics(parts) == pytest.approx(whole_metrics, abs=1e-6)


def test_trimmed_micro_batches_add_up_in_dr_grpo():
    """A micro-batch trimmed to its own longest caption keeps the step's constant denominator."""
    objective = Objective(kl_coef=0.0, normalization="dr_grpo")
    mask = torch.tensor([[True, False, False], [True, True, True]])
    counts, advantages = BatchCounts.of(mask), torch.tensor([1.0, 3.0])
    zeros = torch.zeros(2, 3)
    whole, _ = grpo_loss(Evaluation(zeros, zeros), zeros, advantages, mask, objective)
    one = torch.zeros(1, 1)
    first, _ = grpo_loss(Evaluation(one, one), one, advantages[:1], mask[:1, :1], objective, counts)
    second, _ = grpo_loss(
        Evaluation(zeros[1:], zeros[1:]), zeros[1:], advantages[1:], mask[1:], objective, counts
    )
    assert whole.item() == pytest.approx(-10 / 6)
    assert (first + second).item() == pytest.approx(-10 / 6)


@pytest.mark.parametrize(("normalization", "ratio_level"), VARIANTS)
def test_on_policy_gradient_is_the_policy_gradient(normalization, ratio_level):
    """At ratio 1 the gradient by each log-prob is -A times the action's weight: nothing is
    clipped."""
    mask = torch.tensor([[True, True, False], [True, True, True]])
    log_probs = torch.randn(2, 3, requires_grad=True)
    objective = Objective(kl_coef=0.0, normalization=normalization, ratio_level=ratio_level)
    advantages = torch.tensor([1.5, -0.5])
    loss, metrics = grpo_loss(
        Evaluation(log_probs, torch.zeros(2, 3)), log_probs.detach(), advantages, mask, objective
    )
    loss.backward()
    weights = action_weights(mask, objective, BatchCounts.of(mask))
    torch.testing.assert_close(log_probs.grad, -advantages[:, None] * weights)
    assert metrics["clip_frac"] == 0
    assert metrics["ratio_max"] == 1
    assert metrics["kl_old"] == 0


def test_clipped_actions_get_no_gradient():
    log_probs = torch.tensor([[1.0, 0.0]], requires_grad=True)
    args = (torch.zeros(1, 2), torch.tensor([1.0]), torch.ones(1, 2, dtype=torch.bool))
    grpo_loss(Evaluation(log_probs, torch.zeros(1, 2)), *args, Objective(kl_coef=0.0))[0].backward()
    assert log_probs.grad[0].tolist() == pytest.approx([0.0, -0.5])
    log_probs.grad = None
    unclipped = Objective(clip_eps_low=1e9, clip_eps_high=1e9, kl_coef=0.0)
    grpo_loss(Evaluation(log_probs, torch.zeros(1, 2)), *args, unclipped)[0].backward()
    assert log_probs.grad[0].tolist() == pytest.approx([-math.e / 2, -0.5])


@pytest.mark.parametrize(("normalization", "ratio_level"), VARIANTS)
def test_empty_captions_contribute_zero_not_nan(normalization, ratio_level):
    """Garbage in masked positions, even nan and inf, reaches neither loss nor gradient."""
    objective = Objective(kl_coef=0.1, normalization=normalization, ratio_level=ratio_level)
    mask = torch.tensor([[True, True], [False, False]])
    log_probs = torch.tensor([[-1.0, -2.0], [float("nan"), float("-inf")]], requires_grad=True)
    kl = torch.tensor([[0.5, 0.5], [float("nan"), float("inf")]])
    old = torch.tensor([[-1.0, -2.0], [0.0, float("-inf")]])
    advantages = torch.tensor([1.0, -1.0])
    entropy = torch.tensor([[0.2, 0.4], [float("nan")] * 2])
    loss, metrics = grpo_loss(Evaluation(log_probs, entropy, kl), old, advantages, mask, objective)
    loss.backward()
    num_active_share = {"grpo": 1 / 2, "dapo": 1.0, "dr_grpo": 2 / 4}[normalization]
    assert loss.item() == pytest.approx(-(1 - 0.05) * num_active_share)
    assert log_probs.grad[1].tolist() == [0.0, 0.0]
    assert log_probs.grad[0].abs().min() > 0
    assert metrics["entropy"] == pytest.approx(0.3)

    nothing, metrics = grpo_loss(
        Evaluation(log_probs[1:], entropy[1:], kl[1:]), old[1:], advantages[1:], mask[1:], objective
    )
    assert nothing.item() == 0
    assert all(math.isfinite(value) for value in metrics.values())


def test_undefined_entropy_is_nan():
    evaluation = Evaluation(torch.zeros(1, 2), torch.full((1, 2), float("nan")))
    args = (
        torch.zeros(1, 2),
        torch.ones(1),
        torch.ones(1, 2, dtype=torch.bool),
        Objective(kl_coef=0.0),
    )
    assert math.isnan(grpo_loss(evaluation, *args)[1]["entropy"])


def test_missing_kl_and_bad_settings_are_refused():
    evaluation = Evaluation(torch.zeros(1, 2), torch.zeros(1, 2))
    args = (torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="with_kl=True"):
        grpo_loss(evaluation, *args, Objective(kl_coef=0.1))
    with pytest.raises(ValueError, match="clip-eps-low"):
        Objective(clip_eps_low=0.0)
    with pytest.raises(ValueError, match="kl-coef"):
        Objective(kl_coef=-1.0)
    for wrong in ({"normalization": "mean"}, {"ratio_level": "seq"}, {"scale_rewards": "grp"}):
        objective = Objective()
        ((name, value),) = wrong.items()
        object.__setattr__(
            objective, name, value
        )  # so that run-time type checks, where on, do not come first
        with pytest.raises(ValueError, match=f"{name} must be one of .*; got '{value}'"):
            objective.__post_init__()


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("nats", [20.5, 100.0, 1e4, math.inf])
def test_a_ratio_that_would_overflow_is_bounded_and_counted(level, advantage, nats):
    """Two sequences of one action: the first has run away, the second is where it was."""
    mask = torch.ones(2, 1, dtype=torch.bool)
    log_probs = torch.tensor([[0.0], [-1.0]], requires_grad=True)
    objective = Objective(kl_coef=0.0, ratio_level=level, clip_eps_low=1e9, clip_eps_high=1e9)
    old = torch.tensor([[-nats], [-1.0]])
    loss, metrics = grpo_loss(
        Evaluation(log_probs, None), old, torch.tensor([advantage, 1.0]), mask, objective
    )
    loss.backward()
    largest = math.exp(20)
    assert loss.item() == pytest.approx(-(largest * advantage + 1) / 2)
    assert log_probs.grad is not None and log_probs.grad.tolist() == [[0.0], [-0.5]]
    assert metrics["ratio_bounded_frac"] == 0.5
    assert metrics["ratio_max"] == pytest.approx(largest)
    assert metrics["kl_old"] == pytest.approx((largest - 21) / 2)
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_ratio_below_the_bound_is_as_it_was():
    """So is one that falls by however much: its exp is 0."""
    mask = torch.ones(2, 1, dtype=torch.bool)
    log_probs = torch.tensor([[19.5], [-100.0]], requires_grad=True)
    objective = Objective(kl_coef=0.0, clip_eps_low=1e9, clip_eps_high=1e9)
    loss, metrics = grpo_loss(
        Evaluation(log_probs, None), torch.zeros(2, 1), torch.ones(2), mask, objective
    )
    loss.backward()
    assert loss.item() == pytest.approx(-math.exp(19.5) / 2)
    assert log_probs.grad is not None and log_probs.grad[:, 0].tolist() == pytest.approx(
        [-math.exp(19.5) / 2, 0.0]
    )
    assert metrics["ratio_bounded_frac"] == 0.0
    assert metrics["kl_old"] == pytest.approx((math.exp(19.5) - 20.5 + 99) / 2)


@pytest.mark.parametrize("nats", [21.0, 100.0, math.inf])
def test_the_kl_to_a_far_reference_is_bounded_and_counted(nats):
    log_probs = torch.tensor([[-nats, -2.0], [-1.0, -1.0]], requires_grad=True)
    kl = k3_kl(log_probs, torch.tensor([[0.0, -2.0], [-1.0, -101.0]]))
    assert kl.tolist() == [[pytest.approx(math.exp(20) - 21), 0.0], [0.0, pytest.approx(99.0)]]
    mask = torch.ones(2, 2, dtype=torch.bool)
    objective = Objective(kl_coef=1.0)
    loss, metrics = grpo_loss(
        Evaluation(log_probs, None, kl), log_probs.detach(), torch.zeros(2), mask, objective
    )
    assert metrics["kl_bounded_frac"] == 0.25 and metrics["ratio_bounded_frac"] == 0.0
    if math.isfinite(nats):
        loss.backward()
        assert log_probs.grad is not None
        assert log_probs.grad.tolist() == [[0.0, 0.0], [0.0, pytest.approx(0.25)]]
