"""Scalars of float32 beside numpy's and torch's own conversions, and the fused multiply-add of tensors."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from exactq.numerics.rounding import fma
from exactq.numerics.scalars import float32, fused, shown

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.integers(-(2**40), 2**40))
def test_an_integer_is_rounded_once(value: int) -> None:
    assert float32(value) == np.float64(value).astype(np.float32)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_fraction_is_rounded_as_the_double_that_it_is(value: float) -> None:
    with np.errstate(all="ignore"):
        assert float32(Fraction(value)) == np.float64(value).astype(np.float32)


@given(st.integers(2**23, 2**24 - 1), st.integers(-149, 104))
def test_halfway_goes_to_the_even_neighbour(odd_or_even: int, exponent: int) -> None:
    half = (Fraction(odd_or_even) + Fraction(1, 2)) * Fraction(2) ** exponent
    even = Fraction(odd_or_even + odd_or_even % 2) * Fraction(2) ** exponent
    found = float32(half)
    assert np.isinf(found) if even > Fraction(float(np.finfo(np.float32).max)) else Fraction(float(found)) == even


@given(FLOATS, FLOATS, FLOATS)
def test_fused_is_the_tensors_fused(a: float, b: float, c: float) -> None:
    with np.errstate(all="ignore"):
        one = fused(np.float32(a), np.float32(b), np.float32(c))
    wanted = fma(*(torch.tensor(v, dtype=torch.float32) for v in (a, b, c))).item()
    if abs(wanted) >= 2.0**-100 or wanted == 0:  # below, the tensors' sum in float64 may itself be rounded
        assert float(one) == wanted


def test_numbers_are_shown_with_the_digits_that_they_have() -> None:
    assert [shown(v) for v in (7, -3, np.float32(1e-30), np.float32(16777216.0), np.float32("inf"), 0.1234567)] == [
        "7",
        "-3",
        "1e-30",
        str(np.float32(16777216.0)),
        "inf",
        "0.123457",
    ]
