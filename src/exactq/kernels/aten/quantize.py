"""Reals to codes and back: PyTorch has several ways, and they round differently.

quantize_per_tensor                          q = rint(clamp(fma(x, fl(1/s), z)))       the zero inside the one rounding (FBGEMM)
quantize_vector, a kernel's vector loop      q = clamp(int32(rint(fl(x · fl(1/s))) + z))
quantize_scalar, what such a loop leaves     q = clamp(rint(fl(fl(x · fl(1/s)) + z)))
dequantize                                   x = fl(fl(q − z) · s)
dequantize_vector                            x = fma(s, q, fl(s · −z))
(aten/src/ATen/native/quantized/AffineQuantizerBase.cpp, ATen/cpu/vec/vec256/vec256_qint.h, FBGEMM QuantUtilsAvx2.cc)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_scale, scalar_zero, stored_range
from exactq.numerics.rounding import fma


def quantize_per_tensor(y: Grid) -> Callable[[Tensor], Tensor]:
    """torch.quantize_per_tensor: the code of each real, as float32 holding integers; NaN becomes the highest code.

    >>> from exactq.numerics.formats import UINT8
    >>> y = Grid(UINT8, torch.tensor(1.0), torch.tensor(3, dtype=torch.int32))
    >>> quantize_per_tensor(y)(torch.tensor([0.5, 1.5]))  # 3.5 and 4.5, to even
    tensor([4., 4.])
    """
    inverse, zero, (lo, hi) = 1 / scalar_scale(y), torch.tensor(float(scalar_zero(y))), stored_range(y)

    def apply(x: Tensor) -> Tensor:
        steps = fma(x.to(torch.float32), inverse.to(x.device), zero.to(x.device))
        return steps.nan_to_num_(nan=hi, posinf=hi, neginf=lo).clamp_(lo, hi).round_()

    return apply


def quantize_vector(y: Grid) -> Callable[[Tensor], Tensor]:
    """What a vector loop makes of its reals.

    Steps are kept below 2³¹ before the zero is added in int32: at the largest, 2³¹ − 128, a zero from 128 on wraps the sum
    around, and the largest reals get the lowest code.
    """
    inverse, zero, (lo, hi) = 1 / scalar_scale(y), scalar_zero(y), stored_range(y)

    def apply(x: Tensor) -> Tensor:
        steps = (x * inverse.to(x.device)).round_()
        if zero >= 128:
            steps.masked_fill_(steps >= 2.0**31 - 128, -torch.inf)
        return steps.add_(zero).clamp_(lo, hi)

    return apply


def quantize_scalar(y: Grid) -> Callable[[Tensor], Tensor]:
    """What a loop makes of the reals that are left over."""
    inverse, zero, (lo, hi) = 1 / scalar_scale(y), scalar_zero(y), stored_range(y)
    return lambda x: (x * inverse.to(x.device)).add_(zero).round_().clamp_(lo, hi)


def dequantize(x: Grid) -> Callable[[Tensor], Tensor]:
    """The real of each code, float32, one product."""
    scale, zero = scalar_scale(x), scalar_zero(x)
    return lambda codes: (codes.to(torch.float32) - zero).mul_(scale.to(codes.device))


def dequantize_vector(x: Grid) -> Callable[[Tensor], Tensor]:
    """The real of each code as a vector loop decodes it."""
    scale = scalar_scale(x)
    offset = scale * -scalar_zero(x)
    return lambda codes: fma(codes.to(torch.float32), scale.to(codes.device), offset.to(codes.device))
