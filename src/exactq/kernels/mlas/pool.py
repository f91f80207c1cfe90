"""QLinearGlobalAveragePool, QLinearAveragePool and MaxPool on codes of ONNX Runtime's CPU kernels.

Global:   y = clamp(rint(fl(float(Σx − zx·n) · fl(sx / fl(sy·n)))) + zy)      (mlas/lib/qlgavgpool.cpp)
Windowed: v = fl(fl(fl(Σ fl(sx·(x − zx)) / count) / sy) + zy), the sum in float32 in the order of the window; y = clamp(rint(v))
A window that is the whole unpadded image takes the global formula (contrib_ops/cpu/quantization/qlinear_pool.cc).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from math import prod
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor

from exactq.errors import ModelError
from exactq.kernels.accumulators import Kernel
from exactq.kernels.sums import EXACT
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import requantization, scalar_scale, scalar_zero, stored_range


def global_average_pool(x: Grid, y: Grid) -> Kernel:
    """The mean over all axes after the second, which stay with size 1: codes of `x` -> codes of `y`.

    The kernel raises `ModelError` where the runtime does: for 2²⁴ pixels and more, and for a factor outside 2⁻³²..256.
    """
    sx, sy, accumulate = scalar_scale(x), scalar_scale(y), global_sum(x)

    @cache
    def requantize(count: int) -> Kernel:
        ratio = sx / (sy * count)
        if count >= 2**24 or not 2.0**-32 <= float(ratio) < 256:
            raise ModelError(
                f"QLinearGlobalAveragePool refuses {count} pixels with scales {float(sx):g} -> {float(sy):g}: "
                f"the factor {float(ratio):g} must lie in 2^-32..256"
            )
        return requantization(ratio, y)

    return lambda codes: requantize(prod(codes.shape[2:]))(accumulate(codes))


def global_sum(x: Grid) -> Kernel:
    """The int32 accumulator of `global_average_pool`: Σx − zx·n, as float32 or float64 holding integers."""
    zero, largest = scalar_zero(x), max(-x.format.lo, x.format.hi)

    def accumulate(codes: Tensor) -> Tensor:
        count = prod(codes.shape[2:])
        dtype = torch.float32 if count * 2 * largest <= EXACT else torch.float64
        return codes.to(dtype).sum(tuple(range(2, codes.ndim)), keepdim=True) - zero * count

    return accumulate


def average_pool(
    x: Grid,
    y: Grid,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0,),
    ceil: bool = False,
    count_include_pad: bool = False,
) -> Kernel:
    """The mean of each window: codes (n, c, *image) of `x` -> codes of `y`; padding as in `conv`.

    Windows count the pixels they hold, and with `count_include_pad` those of the padding too.
    """
    rank, (lo, hi) = len(kernel), stored_range(y)
    zero, sx, sy, zy = scalar_zero(x), scalar_scale(x), scalar_scale(y), scalar_zero(y)
    everything = global_average_pool(x, y)
    begins, ends, strides = *_sides(padding, rank), _each(stride, rank)

    def count(image: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """How many pixels each window is divided by: those inside, or all places, even where `ceil` lets it stick out."""
        if count_include_pad:
            return torch.tensor(float(prod(kernel)))
        counts = torch.ones(())
        for n, k, s, b, size in zip(image, kernel, strides, begins, sizes, strict=True):
            along = [min(i * s - b + k, n) - max(i * s - b, 0) for i in range(size)]
            counts = counts[..., None] * torch.tensor(along, dtype=torch.float32)
        return counts

    def apply(codes: Tensor) -> Tensor:
        image = tuple(codes.shape[2:])
        if image == tuple(kernel) and not any((*begins, *ends)):
            return everything(codes)
        sizes = [_windows(*n, ceil=ceil) for n in zip(image, kernel, strides, begins, ends, strict=True)]
        windows = _shifts(kernel, strides, begins, sizes, image)
        # Adding the 0 of a pixel outside changes no sum: fl(s + 0) = s.
        total = torch.zeros((*codes.shape[:2], *sizes), device=codes.device)
        for shifted in windows((codes.to(torch.float32) - zero) * sx, 0.0):
            total += shifted
        v = total.div_(count(image, sizes).to(codes.device)).div_(sy).add_(zy).round_()
        return torch.where((v >= 2**31) | v.isnan(), float(lo), v.clamp(lo, hi))

    return apply


def max_pool(
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil: bool = False,
) -> Kernel:
    """The largest code of each window; the grid stays. Pixels of the padding never win."""
    rank = len(kernel)
    begins, ends, strides, dilations = *_sides(padding, rank), _each(stride, rank), _each(dilation, rank)
    extents = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]

    def apply(codes: Tensor) -> Tensor:
        image = tuple(codes.shape[2:])
        sizes = [_windows(*n, ceil=ceil) for n in zip(image, extents, strides, begins, ends, strict=True)]
        need = [max(0, (m - 1) * s + e - n - b) for m, s, e, n, b in zip(sizes, strides, extents, image, begins, strict=True)]
        sides = tuple(n for side in zip(begins[::-1], need[::-1], strict=True) for n in side)
        padded = F.pad(codes.to(torch.float32), sides, value=-torch.inf) if any(sides) else codes.to(torch.float32)
        pooled = pool(padded, tuple(kernel), strides, dilation=dilations)
        return pooled[(slice(None), slice(None), *(slice(size) for size in sizes))]

    return apply


def _windows(image: int, extent: int, stride: int, begin: int, end: int, *, ceil: bool) -> int:
    """How many windows fit an axis; with `ceil` a last partial one, unless it would start in the end padding (ONNX)."""
    room = image + begin + end - extent
    count = (-(-room // stride) if ceil else room // stride) + 1
    return count - 1 if ceil and (count - 1) * stride >= image + begin else count


def _shifts(
    kernel: Sequence[int], strides: Sequence[int], begins: Sequence[int], sizes: Sequence[int], image: Sequence[int]
) -> Callable[[Tensor, float], list[Tensor]]:
    """For each place of the window, the last axis fastest, the pixels that stand there in all windows."""
    need = [max(0, (m - 1) * s + k - n - b) for m, s, k, n, b in zip(sizes, strides, kernel, image, begins, strict=True)]
    sides = tuple(n for side in zip(begins[::-1], need[::-1], strict=True) for n in side)
    reached = [(m - 1) * s + 1 for m, s in zip(sizes, strides, strict=True)]

    def of(x: Tensor, outside: float) -> list[Tensor]:
        padded = F.pad(x, sides, value=outside)
        return [
            padded[(slice(None), slice(None), *map(slice, place, map(add, place, reached), strides))]
            for place in product(*(range(k) for k in kernel))
        ]

    return of


def _each(numbers: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(numbers) * (rank // len(numbers))


def _sides(padding: Sequence[int], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if len(padding) == 2 * rank:
        return tuple(padding[:rank]), tuple(padding[rank:])
    return _each(padding, rank), _each(padding, rank)
