"""QNNPACK's average pools: y = clamp(rint(fl(S · fl(s / fl(s·n)))) + z), S = Σ (x − z), n the places of a window.

Padded pixels count, whatever count_include_pad says (native/quantized/cpu/AveragePool2d.cpp, AdaptiveAveragePooling.cpp;
qnnpack q8avgpool, q8gavgpool).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from exactq.kernels import aten
from exactq.kernels.accumulators import Kernel
from exactq.kernels.aten.pool import adaptive_sums, window_sums
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import packing_to_codes, scalar_scale, scalar_zero


def average_pool(
    x: Grid, *, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: bool = False
) -> Kernel:
    """The mean of each window: codes (n, c, *image) of `x` -> codes of `x`."""
    zero, finish = scalar_zero(x), packing_to_codes(x)
    factor = _factor(x, prod(kernel))

    def apply(codes: Tensor) -> Tensor:
        total = window_sums(codes.to(torch.float32) - zero, kernel=kernel, stride=stride, padding=padding, ceil=ceil)
        return finish(total.to(torch.float32) * factor.to(codes.device))

    return apply


def adaptive_average_pool(x: Grid, *, output: Sequence[int]) -> Kernel:
    """The mean of each part of the image: QNNPACK's pool where the parts are of one size, ATen's otherwise."""
    zero, finish = scalar_zero(x), packing_to_codes(x)
    otherwise = aten.adaptive_average_pool(x, output=output)

    def apply(codes: Tensor) -> Tensor:
        if any(size % parts for size, parts in zip(codes.shape[2:], output, strict=True)):
            return otherwise(codes)
        total, count = adaptive_sums(codes.to(torch.float32) - zero, output)
        return finish(total.to(torch.float32) * _factor(x, int(count.flatten()[0])).to(codes.device))

    return apply


def _factor(x: Grid, count: int) -> Tensor:
    scale = scalar_scale(x)
    return scale / (scale * count)
