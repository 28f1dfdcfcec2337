"""Draws depend on their key alone, are the same bits everywhere, and have the right
distribution."""

import math
import time

import numpy as np
import pytest
import torch

from uae.utils.seed import make_generator, normals, seed_everything, uniforms


def test_draws_do_not_depend_on_the_batch_split():
    whole = uniforms(7, 3, range(8), "tokens", 48)
    parts = torch.cat(
        [uniforms(7, 3, [0, 1, 2], "tokens", 48), uniforms(7, 3, torch.arange(3, 8), "tokens", 48)]
    )
    assert torch.equal(whole, parts)
    assert torch.equal(
        uniforms(7, 3, [5], "tokens", 20), whole[5:6, :20]
    )  # nor on the length asked for
    noise = normals(7, 3, range(4), "start", (2, 3, 3))
    assert torch.equal(normals(7, 3, [2], "start", (2, 3, 3)), noise[2:3])


def test_every_part_of_the_key_counts():
    base = uniforms(1, 2, [3], "a", 4)
    others = [uniforms(2, 2, [3], "a", 4), uniforms(1, 3, [3], "a", 4), uniforms(1, 2, [4], "a", 4)]
    others += [uniforms(1, 2, [3], "b", 4), uniforms(2, 1, [3], "a", 4)]
    assert all(not torch.isclose(base, other).any() for other in others)


def test_known_bits():
    """Fixed for ever: a change here changes every published run."""
    words = (uniforms(0, 0, [0, 1], "tokens", 3) * 2**24).long()
    assert words.tolist() == UNIFORM_WORDS
    assert normals(0, 0, [0], "start", (4,)).view(torch.int32)[0].tolist() == NORMAL_BITS


UNIFORM_WORDS = [[4635808, 6545705, 2100790], [7613901, 10582024, 5993694]]
NORMAL_BITS = [1051301894, -1081974755, 1061289978, -1081005669]


def test_uniforms_are_uniform_and_independent():
    draws = uniforms(0, 1, range(500), "tokens", 400)
    assert draws.dtype == torch.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws, 20, 0, 1)
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum().item()
    assert chi_square < 45  # 19 degrees of freedom: 99.9 % lie below 43.8
    neighbours = np.corrcoef(draws[:, :-1].flatten(), draws[:, 1:].flatten())[0, 1]
    sequences = np.corrcoef(draws[:-1].flatten(), draws[1:].flatten())[0, 1]
    assert abs(neighbours) < 0.01
    assert abs(sequences) < 0.01


def test_normals_are_normal():
    draws = normals(0, 1, range(200), "start", (4, 25, 10)).double()
    assert draws.shape == (200, 4, 25, 10)
    assert draws.mean().item() == pytest.approx(0, abs=0.01)
    assert draws.var().item() == pytest.approx(1, abs=0.01)
    assert (draws**4).mean().item() == pytest.approx(3, abs=0.08)
    for x in (-2.5, -1.0, 0.5, 2.0):
        expected = 0.5 * (1 + math.erf(x / math.sqrt(2)))
        assert (draws < x).double().mean().item() == pytest.approx(expected, abs=0.004)


def test_inverse_normal_equals_torch():
    from uae.utils.seed import _inverse_normal

    p = np.concatenate([np.logspace(-16, -1.5, 500), np.linspace(0.001, 0.999, 500)])
    np.testing.assert_allclose(
        _inverse_normal(p), torch.special.ndtri(torch.from_numpy(p)).numpy(), atol=2e-8
    )


def test_uniforms_are_cheap():
    uniforms(0, 0, range(64), "tokens", 48)
    seconds = []
    for step in range(20):
        start = time.perf_counter()
        uniforms(0, step, range(64), "tokens", 48)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.002


def test_generators_and_global_seed():
    first, again, other = (
        make_generator(1, "shuffle"),
        make_generator(1, "shuffle"),
        make_generator(2, "shuffle"),
    )
    draw = torch.rand(4, generator=first)
    assert torch.equal(draw, torch.rand(4, generator=again))
    assert not torch.equal(draw, torch.rand(4, generator=other))
    assert make_generator(1, 23).initial_seed() != make_generator(12, 3).initial_seed()
    assert make_generator(1).initial_seed() != make_generator("1").initial_seed()
    seed_everything(5)
    values = (torch.rand(1).item(), np.random.rand())  # noqa: NPY002
    seed_everything(5)
    assert values == (torch.rand(1).item(), np.random.rand())  # noqa: NPY002
