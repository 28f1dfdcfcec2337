"""Paired differences: by hand, against the normal interval, and by groups."""

from __future__ import annotations

import math

import numpy as np
import pytest

from uae.bench.compare.paired import compare


def values(numbers) -> dict[str, float]:
    return {str(i): float(number) for i, number in enumerate(numbers)}


def test_by_hand():
    result = compare({"a": 0.0, "b": 1.0, "c": 0.5}, {"b": 1.0, "a": 1.0, "d": 0.0})
    assert result is not None
    assert (result.before, result.after, result.delta) == (50.0, 100.0, 50.0)
    assert (result.num_items, result.num_left_out) == (2, 2)
    # of two items each resample's mean difference is 0, 1/2 or 1, with 1/4, 1/2 and 1/4
    assert (result.low, result.high) == (0.0, 100.0) and not result.is_significant
    assert result.p == pytest.approx(0.5, abs=0.03)


def test_what_is_alike_differs_by_nothing():
    result = compare(values([0.2] * 30), values([0.2] * 30))
    assert result is not None
    assert (result.delta, result.low, result.high, result.p) == (0.0, 0.0, 0.0, 1.0)
    assert compare({"a": 1.0}, {"b": 1.0}) is None


def test_it_agrees_with_the_normal_interval():
    rng = np.random.default_rng(1)
    before = rng.random(400)
    after = before + 0.02 + 0.1 * rng.standard_normal(400)
    result = compare(values(before), values(after))
    assert result is not None
    half = 1.96 * (after - before).std(ddof=1) / math.sqrt(400)
    assert result.high - result.low == pytest.approx(200 * half, rel=0.05)
    assert (result.low + result.high) / 2 == pytest.approx(result.delta, abs=10 * half)
    # far less than of two samples that know nothing of each other
    assert result.high - result.low < 0.5 * 200 * 1.96 * before.std() * math.sqrt(2 / 400)


def test_a_clear_difference_is_significant_and_noise_is_mostly_not():
    rng = np.random.default_rng(2)
    clear = compare(values([0] * 50), values([1] * 40 + [0] * 10))
    assert clear is not None and clear.is_significant and clear.p < 1e-3
    found = []
    for seed in range(100):
        before, after = rng.random((2, 60)).round()
        result = compare(values(before), values(after), num_bootstrap=500, seed=seed)
        assert result is not None
        found.append(result.is_significant)
    assert 0 <= sum(found) <= 13  # 5 expected


def test_items_of_a_group_are_drawn_together():
    """Ten questions about each of twenty images, all right or all wrong: as twenty items."""
    rng = np.random.default_rng(3)
    right = rng.random(20).round()
    before = {f"{i} {k}": 0.0 for i in range(20) for k in range(10)}
    after = {f"{i} {k}": right[i] for i in range(20) for k in range(10)}
    grouped = compare(before, after, group_of=lambda item: item.split()[0])
    alone = compare(values([0] * 20), values(right))
    loose = compare(before, after)
    assert grouped is not None and alone is not None and loose is not None
    assert (grouped.low, grouped.high) == (alone.low, alone.high)
    assert loose.high - loose.low < 0.5 * (grouped.high - grouped.low)
    assert compare(before, after) == loose  # the same draws
