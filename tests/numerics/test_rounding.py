"""Rounding beside its definition in Fractions and Python ints."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from exactq.numerics.rounding import fma, wrap_int32

floats = st.floats(-(2.0**40), 2.0**40, width=32)


def nearest_float32(x: Fraction) -> float:
    """The float32 nearest to a fraction of moderate size, ties to the even significand."""
    if x == 0:
        return 0.0
    size = abs(x)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    unit = Fraction(2) ** max(exponent - 23, -149)
    return float(round(x / unit) * unit)  # Fraction rounds half to even


@given(floats, floats, floats)
def test_fma_rounds_the_exact_result_once(a: float, b: float, c: float) -> None:
    ours = fma(*(torch.tensor(v) for v in (a, b, c)))
    assert ours.dtype == torch.float32
    assert ours.item() == nearest_float32(Fraction(a) * Fraction(b) + Fraction(c))


def test_fma_rounds_once_where_two_roundings_differ() -> None:
    rng = np.random.default_rng(1)
    a, b = (torch.from_numpy(rng.integers(2**23, 2**24, 20000).astype(np.float32)) for _ in range(2))
    tie = torch.from_numpy((rng.integers(0, 2, 20000) * 2.0 - 1).astype(np.float32))
    exact = [nearest_float32(Fraction(int(p)) * Fraction(int(q)) + Fraction(int(r))) for p, q, r in zip(a, b, tie, strict=True)]
    assert fma(a, b, tie).tolist() == exact
    twice = (a.double() * b.double() + tie.double()).float()
    assert fma(a * 2.0**-24, b * 2.0**-24, tie).shape == twice.shape


def test_fma_of_the_end_of_the_range_and_of_nan() -> None:
    big, one = torch.tensor(3e38), torch.tensor(1.0)
    assert fma(big, torch.tensor(2.0), one).item() == float("inf")
    assert fma(big, torch.tensor(2.0), -big).item() == nearest_float32(Fraction(big.item()))
    assert fma(torch.tensor(torch.nan), one, one).isnan()
    assert fma(torch.tensor(torch.inf), one, one).item() == float("inf")


def test_fma_broadcasts() -> None:
    assert fma(torch.ones(3, 1), torch.ones(2), torch.tensor(1.0)).tolist() == [[2.0, 2.0]] * 3


@given(st.integers(-(2**52), 2**52))
def test_wraparound_is_that_of_int32(x: int) -> None:
    assert wrap_int32(torch.tensor(float(x), dtype=torch.float64)).item() == (x + 2**31) % 2**32 - 2**31
