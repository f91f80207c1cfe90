"""QuantizeLinear and DequantizeLinear of ONNX Runtime's CPU kernels (mlas/lib/quantize.cpp; quantize_avx512f.cpp agrees).

q = rint(clamp(fl(x / s), lo − z, hi − z)) + z      a true division; the zero added after rounding; NaN gives lo
x = fl(float(q − z) · s)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exactq.numerics.formats import Grid
from exactq.numerics.requantization import rounding_to_codes, scalar_scale, scalar_zero


def quantize_linear(y: Grid) -> Callable[[Tensor], Tensor]:
    """The nearest code of each real, ties to even, as float32 holding integers; `y` is per tensor.

    >>> from exactq.numerics.formats import UINT8
    >>> quantize_linear(Grid(UINT8, torch.tensor(0.5), torch.tensor(3, dtype=torch.int32)))(torch.tensor([0.25, torch.nan]))
    tensor([3., 0.])
    """
    scale, finish = scalar_scale(y), rounding_to_codes(y, nan=True)
    return lambda x: finish(x.to(torch.float32) / scale.to(x.device))


def dequantize_linear(x: Grid) -> Callable[[Tensor], Tensor]:
    """The real of each code, float32, one product."""
    scale, zero = scalar_scale(x), scalar_zero(x)

    def apply(codes: Tensor) -> Tensor:
        return (codes.to(torch.float32) - zero).mul_(scale.to(codes.device))

    return apply
