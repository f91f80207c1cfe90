"""Rounding that hardware does in one instruction and float arithmetic in several: fused multiply-add, int32 wraparound."""

from __future__ import annotations

import torch
from torch import Tensor


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a·b + c rounded once to float32 (IEEE 754 fusedMultiplyAdd), for float32 operands that broadcast.

    The product is exact in float64; the sum is rounded to odd there (its error, from TwoSum, decides), and rounding an
    odd-rounded float64 to float32 is the rounding of the exact sum, as 53 ≥ 24 + 2 bits (Boldo & Melquiond 2008, theorem 1).

    >>> a = torch.tensor(1 + 2.0**-12)
    >>> fma(a, a, torch.tensor(-1 - 2.0**-11)), a * a - (1 + 2.0**-11)
    (tensor(5.9605e-08), tensor(0.))
    """
    product = a.double() * b.double()
    addend = c.double()
    total = product + addend
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)
    toward = torch.where(error > 0, torch.inf, -torch.inf).to(torch.float64)
    inexact_even = (error != 0) & (total.view(torch.int64) & 1 == 0)
    return torch.where(inexact_even, torch.nextafter(total, toward), total).to(torch.float32)


def wrap_int32(x: Tensor) -> Tensor:
    """`x` modulo 2³² in −2³¹..2³¹−1, as int32 arithmetic leaves it; float64 holding integers below 2⁵³, and stays so.

    >>> wrap_int32(torch.tensor([2.0**31, -(2.0**31) - 1], dtype=torch.float64)).tolist()
    [-2147483648.0, 2147483647.0]
    """
    return x - torch.floor((x + 2.0**31) * 2.0**-32) * 2.0**32
