"""Reals to codes and back: PyTorch has several ways, and they round differently.

quantize_per_tensor                          q = rint(clamp(fma(x, fl(1/s), z)))       the zero inside the one rounding (FBGEMM)
quantize_per_channel                         q = clamp(rint(fl(fl(x · fl(1/s)) + z)))  the zero inside the second rounding
fake_quantize_*, quantized_decomposed        q = clamp(fl(rint(fl(x · fl(1/s))) + z))  the zero outside
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


def quantize_per_channel(y: Grid) -> Callable[[Tensor], Tensor]:
    """torch.quantize_per_channel: the code of each real, with the scale and zero of its channel, which broadcast.

    >>> from exactq.numerics.formats import UINT8
    >>> y = Grid(UINT8, torch.ones(2, 1), torch.tensor([[2], [3]], dtype=torch.int32))
    >>> quantize_per_channel(y)(torch.tensor([[0.5], [0.5]]))  # 2.5 and 3.5, to even
    tensor([[2.],
            [4.]])
    """
    inverse, zero, (lo, hi) = 1 / y.scale, y.zero.to(torch.float32), stored_range(y)
    return lambda x: (x * inverse.to(x.device)).add_(zero.to(x.device)).round_().clamp_(lo, hi)


def quantize_decomposed(y: Grid) -> Callable[[Tensor], Tensor]:
    """quantized_decomposed.quantize_per_tensor and _per_channel: the code of each real; scale and zero broadcast.

    >>> from exactq.numerics.formats import UINT8
    >>> y = Grid(UINT8, torch.tensor(1.0), torch.tensor(3, dtype=torch.int32))
    >>> quantize_decomposed(y)(torch.tensor([0.5, 1.5]))  # 0 and 2, to even, before the zero is added
    tensor([3., 5.])
    """
    inverse, zero, (lo, hi) = 1 / y.scale, y.zero.to(torch.float32), stored_range(y)
    return lambda x: (x.to(torch.float32) * inverse.to(x.device)).round_().add_(zero.to(x.device)).clamp_(lo, hi)


def fake_quantize_per_tensor(y: Grid) -> Callable[[Tensor], Tensor]:
    """torch.fake_quantize_per_tensor_affine: the real of each real's code."""
    encode, scale, zero = quantize_decomposed(y), y.scale, y.zero.to(torch.float32)
    return lambda x: (encode(x) - zero.to(x.device)).mul_(scale.to(x.device))


def fake_quantize_per_channel(y: Grid) -> Callable[[Tensor], Tensor]:
    """torch.fake_quantize_per_channel_affine: as one scale has it, but steps go through int64: beyond it is the lowest code."""
    inverse, scale, zero, (lo, hi) = 1 / y.scale, y.scale, y.zero.to(torch.float32), stored_range(y)

    def apply(x: Tensor) -> Tensor:
        steps = (x * inverse.to(x.device)).round_()
        codes = steps.masked_fill_(steps >= 2.0**63, -torch.inf).add_(zero.to(x.device)).clamp_(lo, hi)
        return codes.sub_(zero.to(x.device)).mul_(scale.to(x.device))

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
