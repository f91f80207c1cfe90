"""Pools and concatenation of ATen's quantized kernels: the codes stay on the grid of what is read.

S = Σ (x − z) over the window, exact in int32; m = fl(1 / count)
average     rint(fl(S·m)) + z for whole vectors of channels, rint(fl(fl(S·m) + z)) for the channels left over
mean        rint(fl(Σ x / count))
adaptive    rint(fma(S, n, z)) for whole eights of channels, rint(fl(fl(S·n) + z)) for the others, n = fl(1/fl(1/m))
(native/quantized/cpu/kernels/QuantizedOpKernels.cpp: do_avg_pool_nhwc_on_AVX_n, do_avg_pool_on_AVX_n,
qadaptive_avg_pool2d, qmean_inner_dim)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from exactq.kernels.accumulators import Kernel
from exactq.kernels.aten.isa import LANES
from exactq.kernels.aten.layout import channels_tailed
from exactq.kernels.aten.quantize import dequantize, dequantize_vector, quantize_per_tensor, quantize_scalar, quantize_vector
from exactq.numerics.formats import Grid
from exactq.numerics.lookup import all_codes, look_up
from exactq.numerics.requantization import scalar_zero, stored_range
from exactq.numerics.rounding import fma


def window_sums(
    centred: Tensor, *, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: bool = False
) -> Tensor:
    """Σ over each window of (n, c, *image), float64 holding integers; pixels of the padding count 0."""
    rank = len(kernel)
    pool: Callable[..., Tensor] = (F.avg_pool2d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    if rank == 1:
        one = window_sums(centred.unsqueeze(2), kernel=(1, *kernel), stride=(1, *stride), padding=(0, *padding), ceil=ceil)
        return one.squeeze(2)
    return pool(centred.double(), tuple(kernel), tuple(stride), tuple(padding), ceil, True, 1).round_()


def average_pool(
    x: Grid,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil: bool = False,
    count_include_pad: bool = True,
    isa: str,
) -> Kernel:
    """The mean of each window: codes (n, c, *image) of `x` -> codes of `x`."""
    zero, (lo, hi), places = scalar_zero(x), stored_range(x), {"kernel": kernel, "stride": stride, "padding": padding}

    def vector(steps: Tensor) -> Tensor:
        return steps.round().add_(zero).clamp_(lo, hi)

    def scalar(steps: Tensor) -> Tensor:
        return steps.add(zero).round_().clamp_(lo, hi)

    finish = channels_tailed(vector, scalar, block=LANES[isa])

    def apply(codes: Tensor) -> Tensor:
        total = window_sums(codes.to(torch.float32) - zero, **places, ceil=ceil)
        ones = torch.ones((1, 1, *codes.shape[2:]), device=codes.device)
        if count_include_pad:
            sides = [n for p in reversed(padding) for n in (p, p)]
            count = window_sums(
                F.pad(ones, sides, value=1.0), kernel=kernel, stride=stride, padding=(0,) * len(kernel), ceil=ceil
            )
        else:
            count = window_sums(ones, **places, ceil=ceil)
        steps = total.to(torch.float32) * (1 / count.to(torch.float32))
        # A row of pixels is an image of one row: its channels are last only where there is one of either.
        row = len(kernel) == 1 and codes.shape[1] > 1 and codes.shape[2] > 1
        return scalar(steps) if row else finish(steps)

    return apply


def adaptive_average_pool(x: Grid, *, output: Sequence[int]) -> Kernel:
    """The mean of each of `output` parts of the image, which may overlap: codes (n, c, *image) of `x` -> codes of `x`."""
    zero, (lo, hi) = scalar_zero(x), stored_range(x)

    def vector(steps: Tensor, inverse: Tensor) -> Tensor:
        return fma(steps, inverse, torch.tensor(float(zero), device=steps.device)).clamp_(lo, hi).round_()

    def scalar(steps: Tensor, inverse: Tensor) -> Tensor:
        return (steps * inverse).add_(zero).clamp_(lo, hi).round_()

    def apply(codes: Tensor) -> Tensor:
        total, count = adaptive_sums(codes.to(torch.float32) - zero, output)
        steps, inverse = total.to(torch.float32), 1 / (1 / (1 / count.to(torch.float32)))
        # A row of pixels is an image of one row, whose channels are not last in memory.
        whole = 0 if len(output) == 1 else codes.shape[1] // 8 * 8
        return torch.cat([vector(steps[:, :whole], inverse), scalar(steps[:, whole:], inverse)], 1)

    return apply


def adaptive_sums(centred: Tensor, output: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Σ over each part of (n, c, *image), float64 holding integers, and how many pixels each part has."""
    total, count = centred.double(), torch.ones((), dtype=torch.float64)
    for axis, (size, parts) in enumerate(zip(centred.shape[2:], output, strict=True), start=2):
        ends = [(i * size // parts, -((i + 1) * size // -parts)) for i in range(parts)]
        total = torch.cat([total.narrow(axis, lo, hi - lo).sum(axis, keepdim=True) for lo, hi in ends], axis)
        count = count[..., None] * torch.tensor([float(hi - lo) for lo, hi in ends])
    return total, count.to(centred.device)


def mean(x: Grid, *, dims: Sequence[int], keep: bool) -> Kernel:
    """The mean over the last axes, dense in memory: codes of `x` -> codes of `x`, which are what is averaged."""
    lo, hi = stored_range(x)

    def apply(codes: Tensor) -> Tensor:
        total = codes.double().sum(tuple(dims), keepdim=keep)
        count = torch.tensor(codes.numel() / max(1, total.numel()))
        return total.to(torch.float32).div_(count).round_().clamp_(lo, hi)

    return apply


def concat(xs: Sequence[Grid], y: Grid, *, axis: int) -> Callable[..., Tensor]:
    """quantized::cat: codes of each of `xs` -> codes of `y`, one after the other.

    Images joined at their channels are decoded and encoded by eights of channels; everything else goes through reals.
    """

    def table(decode: Callable[[Grid], Kernel], encode: Callable[[Grid], Kernel], x: Grid) -> Kernel:
        return look_up(encode(y)(decode(x)(all_codes(x.format))), x.format)

    plain = [table(dequantize, quantize_per_tensor, x) for x in xs]
    image = [
        channels_tailed(table(dequantize_vector, quantize_vector, x), table(dequantize, quantize_scalar, x), block=8)
        for x in xs
    ]

    def apply(*codes: Tensor) -> Tensor:
        fast = codes[0].ndim == 4 and axis % 4 == 1
        return torch.cat([k(c) for k, c in zip(image if fast else plain, codes, strict=True)], axis)

    return apply


__all__ = ["adaptive_average_pool", "adaptive_sums", "average_pool", "concat", "mean", "window_sums"]
