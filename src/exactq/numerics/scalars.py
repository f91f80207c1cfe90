"""One float32 number at a time, in plain Python: the slow twin of the kernels, for explanations and for tests.

Products, quotients and sums of two `numpy.float32` are rounded once to float32 by IEEE 754 and need nothing here.
"""

from __future__ import annotations

from fractions import Fraction
from math import copysign, inf

import numpy as np
from torch import Tensor

Scalar = int | np.float32
"""A number of an integer kernel: an exact integer, or a float32."""

_LARGEST = Fraction(float(np.finfo(np.float32).max))


def float32(value: int | float | Fraction) -> np.float32:
    """The nearest float32, ties to even, of a number as exact as it comes: one rounding, to ±inf beyond the largest.

    >>> int(float32(2**24 + 1)), float32(Fraction(1, 3))
    (16777216, np.float32(0.33333334))
    """
    if isinstance(value, float):
        return np.float32(value)
    exact = Fraction(value)
    if not exact:
        return np.float32(0)
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, -126) - 23)
    rounded: Fraction = round(size / step) * step  # Python rounds a Fraction to even
    return np.float32(copysign(inf if rounded > _LARGEST else float(rounded), exact))


def fused(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    """a·b + c of finite numbers, rounded once to float32 (IEEE 754 fusedMultiplyAdd); others as two operations give them.

    >>> a = np.float32(1 + 2.0**-12)
    >>> fused(a, a, np.float32(-1 - 2.0**-11)), a * a - np.float32(1 + 2.0**-11)
    (np.float32(5.9604645e-08), np.float32(0.0))
    """
    if not (np.isfinite(a) and np.isfinite(b) and np.isfinite(c)):
        return a * b + c
    return float32(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def scalar(tensor: Tensor) -> np.float32:
    """The one element of a tensor as float32."""
    return np.float32(tensor.item())


def shown(number: int | float | np.float32) -> str:
    """A number as people read it: integers as such, a float32 with the digits that tell it from its neighbours.

    >>> shown(3), shown(np.float32(0.1)), shown(np.float32(2.0))
    ('3', '0.1', '2')
    """
    if isinstance(number, int):
        return str(number)
    value = float(number)
    if value.is_integer() and -(2**24) < value < 2**24:
        return str(int(value))
    return str(number) if isinstance(number, np.float32) else f"{number:.6g}"
