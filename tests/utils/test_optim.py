"""Learning rates, averages and updates, by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from uae.utils.optim import Average, FastAverage, Schedule, clipped_update


def weight(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


@pytest.mark.parametrize(
    ("decay", "factors"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [0.5, 1, *(0.02 + 0.49 * (1 + math.cos(math.pi * i / 4)) for i in range(4))]),
    ],
)
def test_warm_up_and_what_follows(decay, factors: list[float]):
    schedule = Schedule(6, 2, decay)
    assert [schedule.factor(step) for step in range(6)] == pytest.approx(factors, abs=1e-6)
    assert Schedule(6, 0, decay).factor(0) == 1.0


def test_a_cosine_ends_at_two_percent():
    assert Schedule(10, 4, "cosine").factor(10) == pytest.approx(0.02)
    assert Schedule(10, 4, "linear").factor(11) == 0.0


def test_an_average_forgets_the_start_and_stands_in_for_the_weights():
    learnt = weight(1.0)
    average = Average({"w": learnt}, decay=0.15)
    with torch.no_grad():
        learnt.fill_(2.0)
    assert average.updated(0)["w"].item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    average.update(0)
    average.update(1)  # 2/11 is above the decay
    mean = 0.15 * 1.9 + 0.85 * 2
    with average.in_place():
        assert learnt.item() == pytest.approx(mean)
    assert learnt.item() == 2.0 and average.values["w"].item() == pytest.approx(mean)


def test_a_fast_average_follows_at_once_and_then_slower():
    learnt = weight(1.0)
    average = FastAverage({"w": learnt}, rate=0.1, largest_decay=0.25)
    assert [average.decay_at(n) for n in (1, 2, 3, 9)] == pytest.approx([0.1, 0.2, 0.25, 0.25])
    with torch.no_grad():
        learnt.fill_(2.0)
    average.update(1)
    assert average.values["w"].item() == pytest.approx(0.1 * 1 + 0.9 * 2)


@pytest.mark.parametrize("use_bf16", [False, True])
@pytest.mark.parametrize("kind", [Average, partial(FastAverage, rate=0.001)])
def test_an_average_may_stand_in_between_forward_and_backward(kind, use_bf16: bool):
    """Autocast's casts are of the weights that learn before and after, and of the average's
    between."""
    learnt = torch.nn.Parameter(torch.tensor([[3.0]]))
    average = kind({"w": learnt}, **{"decay" if kind is Average else "largest_decay": 0.5})
    with torch.no_grad():
        learnt.fill_(5.0)
    place = learnt.data_ptr()
    values = torch.tensor([[2.0]])
    with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16):
        with torch.no_grad(), average.in_place():
            assert (values @ learnt).item() == 6
        product = values @ learnt
        with torch.no_grad(), average.in_place():
            assert (values @ learnt).item() == 6
        assert product.item() == 10 and (values @ learnt).item() == 10
        (product * learnt).sum().backward()
    assert learnt.grad is not None and learnt.grad.item() == 20  # of 2 w², at 5
    assert learnt.data_ptr() == place
    with pytest.raises(KeyError), average.in_place():
        raise KeyError
    assert learnt.data_ptr() == place


def test_an_update_is_clipped_and_drops_the_gradient():
    learnt = weight(0.0, 0.0)
    learnt.grad = torch.tensor([3.0, 4.0])
    norm = clipped_update(torch.optim.SGD([learnt], lr=1.0), [learnt], 1.0, "")
    assert norm == 5.0 and learnt.grad is None
    torch.testing.assert_close(learnt.detach(), torch.tensor([-0.6, -0.8]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float):
    learnt = weight(1.0, 1.0)
    learnt.grad = torch.tensor([bad, 0.0])
    with pytest.raises(ValueError, match=rf"finite gradient, got norm {bad}.*nothing.*Lower it"):
        clipped_update(torch.optim.SGD([learnt], lr=1.0), [learnt], 1.0, "Lower it")
    assert learnt.tolist() == [1.0, 1.0]
