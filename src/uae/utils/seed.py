"""Randomness that depends on *what* is drawn, never on how the work was split.

Every draw belongs to a key (seed, step, sequence index, stream name). The value is a pure function
of the key and the position in the stream, so batch split, process count, device and resuming cannot
change it. Draws are made on the CPU; only integer and IEEE arithmetic is used, so they are the same
bits on every machine.

Counter-based generator: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), vectorised over sequences
and positions; normals by Acklam's rational approximation of the inverse normal distribution
(relative error 1e-9).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

_CENTRE_NUM = (
    -39.69683028665376,
    220.9460984245205,
    -275.9285104469687,
    138.3577518672690,
    -30.66479806614716,
    2.506628277459239,
)
_CENTRE_DEN = (
    -54.47609879822406,
    161.5858368580409,
    -155.6989798598866,
    66.80131188771972,
    -13.28068155288572,
    1.0,
)
_TAIL_NUM = (
    -7.784894002430293e-3,
    -0.3223964580411365,
    -2.400758277161838,
    -2.549732539343734,
    4.374664141464968,
    2.938163982698783,
)
_TAIL_DEN = (7.784695709041462e-3, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1.0)
_TAIL_P = 0.02425


def seed_everything(seed: int) -> None:
    """Seed the global generators (python, numpy, torch), for code that draws from none of its
    own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the state other libraries draw from
    torch.manual_seed(seed)


def make_generator(*keys: int | str) -> torch.Generator:
    """A CPU generator of its own for these keys, e.g. ``make_generator(seed, epoch,
    "shuffle")``."""
    return torch.Generator().manual_seed(_hash64(*keys) >> 1)


def uniforms(
    seed: int, step: int, indices: Sequence[int] | Tensor, stream: str, num: int
) -> Float[Tensor, "B T"]:
    """``num`` draws in [0, 1) for each sequence index, 24 bits each; one per token, for inverse-CDF
    sampling."""
    bits = _bits(seed, step, indices, stream, num)
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))


def normals(
    seed: int, step: int, indices: Sequence[int] | Tensor, stream: str, shape: Sequence[int]
) -> Float[Tensor, "B ..."]:
    """Standard normal draws of ``shape`` for each sequence index: start noise, SDE noise."""
    bits = _bits(seed, step, indices, stream, math.prod(shape))
    probabilities = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    values = _inverse_normal(probabilities).astype(np.float32)
    return torch.from_numpy(values).reshape(len(indices), *shape)


def sequence_keys(
    keys: Sequence[int] | Tensor | None, num: int, group_size: int
) -> Int[Tensor, " B"]:
    """Of the ``group_size`` sequences of each of ``num`` items; an item's key is by default its
    place."""
    first = torch.arange(num) if keys is None else torch.as_tensor(keys)
    return (first[:, None] * group_size + torch.arange(group_size)).flatten()


def sequence_seeds(seed: int, step: int, indices: Sequence[int] | Tensor, stream: str) -> list[int]:
    """A seed for each sequence index, below 2^63, for samplers that draw by a generator of their
    own."""
    return (_bits(seed, step, indices, stream, 1)[:, 0] >> np.uint64(1)).tolist()


def _hash64(*keys: int | str) -> int:
    text = "\0".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _bits(
    seed: int, step: int, indices: Sequence[int] | Tensor, stream: str, num: int
) -> np.ndarray:
    """``[B, num]`` random 64-bit words: SplitMix64 started at a hash of each sequence's key."""
    index = np.asarray(indices, dtype=np.int64).astype(np.uint64)
    start = _mix(np.uint64(_hash64(int(seed), int(step), stream)) ^ _mix(index + _GAMMA))
    position = np.arange(1, num + 1, dtype=np.uint64) * _GAMMA
    return _mix(start[:, None] + position[None, :])


def _mix(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


def _inverse_normal(p: np.ndarray) -> np.ndarray:
    """The x with Φ(x) = p: a rational function in the centre, another of sqrt(-2 log p) in the
    tails."""
    centred = p - 0.5
    square = centred * centred
    values = centred * _polynomial(_CENTRE_NUM, square) / _polynomial(_CENTRE_DEN, square)
    tails = np.minimum(p, 1 - p) < _TAIL_P
    q = np.sqrt(-2 * _log(np.minimum(p, 1 - p)[tails]))
    values[tails] = -np.sign(centred[tails]) * _polynomial(_TAIL_NUM, q) / _polynomial(_TAIL_DEN, q)
    return values


def _log(x: np.ndarray) -> np.ndarray:
    """log(x) = e log 2 + 2 artanh((m-1)/(m+1)), from arithmetic alone: library logs differ in the
    last bit."""
    mantissa, exponent = np.frexp(x)
    ratio = (mantissa - 1) / (mantissa + 1)
    series = _polynomial([1 / n for n in range(37, 0, -2)], ratio * ratio)
    return exponent * math.log(2) + 2 * ratio * series


def _polynomial(coefficients: Sequence[float], x: np.ndarray) -> np.ndarray:
    """Horner's rule, highest power first."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
