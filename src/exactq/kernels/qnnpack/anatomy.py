"""The anatomies of QNNPACK's kernels: for each factory of a kernel one of the same name and arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
from torch import Tensor

from exactq.kernels import aten
from exactq.kernels.accumulators import channel_scales, per_axis
from exactq.kernels.anatomy import (
    Anatomy,
    Element,
    FloatBias,
    Function,
    IntegerBias,
    Lines,
    Products,
    convolution_terms,
    elementwise,
    matrix_terms,
    window_reads,
)
from exactq.kernels.aten import plain as plain_aten
from exactq.kernels.aten.anatomy import part_reads
from exactq.kernels.qnnpack import plain
from exactq.kernels.qnnpack.bias import bias_codes, pointwise
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_scale, scalar_zero
from exactq.numerics.scalars import scalar


def conv(
    weight: Tensor,
    bias: Tensor | None,
    *,
    x: Grid,
    w: Grid,
    y: Grid,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
    relu: bool = False,
    real_bias: bool = False,
) -> Products:
    """quantized::conv1d, 2d and 3d, with the arguments of `qnnpack.conv`."""
    rank = weight.ndim - 2
    steps, begins = per_axis(stride, rank), per_axis(padding, rank)
    terms = convolution_terms(
        tuple(weight.shape), stride=steps, begins=begins, dilation=per_axis(dilation, rank), groups=groups
    )
    saturates = pointwise(weight.shape[2:], steps, begins)
    held = _bias(bias, x, w, saturates=saturates, real=real_bias)
    once = weight.shape[1:] == (1, 3, 3, 3) and weight.shape[0] == groups > 1
    return Products(x, w, weight, held, terms, 1, None, _finish(held, x, w, y, relu=relu, once=once))


def linear(
    weight: Tensor, bias: Tensor | None, *, x: Grid, w: Grid, y: Grid, relu: bool = False, real_bias: bool = False
) -> Products:
    """quantized::linear, with the arguments of `qnnpack.linear`."""
    held = _bias(bias, x, w, saturates=True, real=real_bias)
    return Products(x, w, weight, held, matrix_terms, -1, None, _finish(held, x, w, y, relu=relu, once=False))


def _bias(bias: Tensor | None, x: Grid, w: Grid, *, saturates: bool, real: bool) -> IntegerBias | FloatBias | None:
    if bias is None:
        return None
    scale = scalar_scale(x) * channel_scales(w, bias.numel())
    codes = bias_codes(bias, x, w, bias.numel(), saturates=saturates)
    return FloatBias(bias, scale) if real or codes is None else IntegerBias(codes.long(), scale)


def _finish(
    bias: IntegerBias | FloatBias | None, x: Grid, w: Grid, y: Grid, *, relu: bool, once: bool
) -> Callable[[int, int], Lines]:
    def finish(acc: int, channel: int) -> Lines:
        b = scalar(bias.values.flatten()[channel]) if isinstance(bias, FloatBias) else None
        return plain.requantize(acc, b, x, w, y, channel, relu=relu, once=once)

    return finish


def add(a: Grid, b: Grid, y: Grid, *, relu: bool = False) -> Function:
    """quantized::add and add_relu on QNNPACK."""
    return Function(elementwise, lambda e: plain.add(e.codes, (a, b, y), relu=relu))


def hardswish(x: Grid, y: Grid) -> Function:
    """quantized::hardswish on QNNPACK: a table of what ATen's scalar loop makes."""

    def lines(e: Element) -> Lines:
        before = np.float32(plain_aten.decoded(e.codes[0], x, body=False).value)
        result = plain_aten.hard_swish(before)
        return plain_aten.applied(e.codes[0], "hardswish", result, x, y, body=False, plainly=True)

    return Function(elementwise, lines)


def average_pool(
    x: Grid, *, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: bool = False
) -> Function:
    """avg_pool1d and 2d on QNNPACK: padded pixels count."""
    reads = window_reads(kernel, stride, padding)
    return Function(reads, lambda e: plain.mean(e, prod(kernel), x), outside=scalar_zero(x))


def adaptive_average_pool(x: Grid, *, output: Sequence[int]) -> Function:
    """adaptive_avg_pool1d and 2d: QNNPACK's where the parts are of one size, ATen's otherwise."""
    otherwise = aten.ANATOMIES["adaptive_average_pool"](x, output=output)
    assert isinstance(otherwise, Function)

    def lines(e: Element) -> Lines:
        uneven = any(size % parts for size, parts in zip(e.shapes[0][2:], output, strict=True))
        return otherwise.plain(e) if uneven else plain.mean(e, len(e.reads), x)

    return Function(part_reads(output), lines)


ANATOMIES: Mapping[str, Callable[..., Anatomy]] = {
    "conv": conv,
    "linear": linear,
    "add": add,
    "hardswish": hardswish,
    "average_pool": average_pool,
    "adaptive_average_pool": adaptive_average_pool,
}
"""Name -> factory of the anatomy, called as that of the kernel is."""
