"""The anatomies of MLAS's kernels: for each factory of a kernel one of the same name and arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from math import prod

import torch
from torch import Tensor

from exactq.kernels.accumulators import channel_scales
from exactq.kernels.anatomy import (
    Anatomy,
    Element,
    Function,
    IntegerBias,
    Line,
    Lines,
    Place,
    Products,
    Read,
    Shape,
    concatenated,
    convolution_terms,
    each,
    elementwise,
    matrix_terms,
    max_pool,
    neighbours,
    pixel_rows,
    product_terms,
    window_reads,
)
from exactq.kernels.lines import channel_scale, constants, decode
from exactq.kernels.mlas import plain
from exactq.kernels.mlas.elementwise import scalar_operand
from exactq.kernels.mlas.isa import saturates
from exactq.kernels.mlas.table import logistic
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_scale
from exactq.numerics.scalars import float32, scalar, shown


def quantize_linear(y: Grid) -> Function:
    """QuantizeLinear of one real."""
    return Function(elementwise, lambda e: plain.quantize(float32(float(e.values[0])), y))


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
    isa: str,
) -> Products:
    """QLinearConv, with the arguments of `conv.conv`."""
    rank = weight.ndim - 2
    begins = padding[:rank] if len(padding) == 2 * rank else padding
    terms = convolution_terms(
        tuple(weight.shape),
        stride=each(stride, rank),
        begins=each(begins, rank),
        dilation=each(dilation, rank),
        groups=groups,
    )
    depthwise = weight.shape[1] == 1 and weight.shape[0] == groups
    pairs = neighbours if saturates(isa, x, w, depthwise=depthwise) else None
    return Products(x, w, weight, _bias(bias, x, w), terms, 1, pairs, partial(_requantized, x, w, y, 1.0))


def gemm(weight: Tensor, bias: Tensor | None, *, x: Grid, w: Grid, y: Grid | None, isa: str, alpha: float = 1.0) -> Products:
    """QGemm and QLinearMatMul with a constant operand, with the arguments of `gemm.gemm`; without `y` it ends in a real."""
    pairs = neighbours if saturates(isa, x, w) else None
    finish = partial(_real, x, w, alpha) if y is None else partial(_requantized, x, w, y, alpha)
    return Products(x, w, weight, _bias(bias, x, w), matrix_terms, -1, pairs, finish)


def matmul(*, a: Grid, b: Grid, y: Grid, isa: str) -> Products:
    """QLinearMatMul of two dynamic operands."""
    pairs = neighbours if saturates(isa, a, b) else None
    return Products(a, b, None, None, product_terms, -1, pairs, partial(_requantized, a, b, y, 1.0))


def _bias(bias: Tensor | None, x: Grid, w: Grid) -> IntegerBias | None:
    """int32 codes on steps of fl(sx·sw), which `sums` adds before anything is rounded."""
    return None if bias is None else IntegerBias(bias, scalar_scale(x) * channel_scales(w, bias.numel()))


def _requantized(x: Grid, w: Grid, y: Grid, alpha: float, acc: int, channel: int) -> Lines:
    multiplier = plain.output_multiplier(x, w, y, channel, alpha)
    return (multiplier, *plain.requantize(acc, float32(float(multiplier.value)), y))


def _real(x: Grid, w: Grid, alpha: float, acc: int, channel: int) -> Lines:
    factor = float32(alpha) * scalar(scalar_scale(x)) * channel_scale(w, channel)
    real = float32(acc) * factor
    return (Line("multiply", f"fl(fl({acc}) · {shown(factor)}) = {shown(real)}", real, {"multiplier": factor}),)


def add(a: Grid, b: Grid, y: Grid) -> Function:
    """QLinearAdd."""

    def lines(e: Element) -> Lines:
        return plain.add(e.codes, (a, b, y), exchanged=scalar_operand(*e.shapes) == "a")

    return Function(elementwise, lines)


def mul(a: Grid, b: Grid, y: Grid) -> Function:
    """QLinearMul."""
    return Function(elementwise, lambda e: plain.mul(e.codes, (a, b, y)))


def sigmoid(x: Grid, y: Grid) -> Function:
    """QLinearSigmoid."""
    return _table("sigmoid", logistic, x, y)


def leaky_relu(x: Grid, y: Grid, *, slope: float) -> Function:
    """QLinearLeakyRelu."""
    negative = torch.tensor(slope, dtype=torch.float32)
    return _table("leaky_relu", lambda v: torch.where(v >= 0, v, v * negative), x, y)


def _table(name: str, fn: Callable[[Tensor], Tensor], x: Grid, y: Grid) -> Function:
    def lines(e: Element) -> Lines:
        (code,) = e.codes
        result = fn(torch.tensor([float(decode(code, x).value)], dtype=torch.float32))
        return plain.table_entry(code, name, scalar(result), x, y)

    return Function(elementwise, lines)


def concat(xs: Sequence[Grid], y: Grid, *, axis: int) -> Function:
    """QLinearConcat."""

    def lines(e: Element) -> Lines:
        (code,), x = e.codes, xs[e.reads[0].operand]
        if x.same_as(y):
            return (Line("copy", f"the operand is on the output's grid: {code} stays", code),)
        decoded = decode(code, x)
        return (decoded, *plain.quantize(float32(float(decoded.value)), y))

    return Function(concatenated(axis), lines)


def global_average_pool(x: Grid, y: Grid) -> Function:
    """QLinearGlobalAveragePool."""

    def reads(at: Place, shapes: Sequence[Shape]) -> Sequence[Read]:
        return [Read(0, (*at[:2], *pixel)) for pixel in product(*map(range, shapes[0][2:]))]

    def lines(e: Element) -> Lines:
        return plain.global_mean(e.codes, pixel_rows(e, constants(x)[1]), x, y)

    return Function(reads, lines)


def average_pool(
    x: Grid,
    y: Grid,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0,),
    ceil: bool = False,
    count_include_pad: bool = False,
) -> Function:
    """QLinearAveragePool, with the arguments of `pool.average_pool`."""
    zero = constants(x)[1]
    everything = global_average_pool(x, y).plain

    def lines(e: Element) -> Lines:
        if tuple(e.shapes[0][2:]) == tuple(kernel) and not any(padding):
            return everything(e)
        count = prod(kernel) if count_include_pad else sum(read.place is not None for read in e.reads)
        return plain.window_mean(e.codes, count, pixel_rows(e, zero), x, y)

    return Function(window_reads(kernel, stride, padding), lines, outside=zero)


ANATOMIES: Mapping[str, Callable[..., Anatomy]] = {
    "quantize_linear": quantize_linear,
    "conv": conv,
    "gemm": gemm,
    "matmul": matmul,
    "add": add,
    "mul": mul,
    "global_average_pool": global_average_pool,
    "average_pool": average_pool,
    "max_pool": max_pool,
    "sigmoid": sigmoid,
    "leaky_relu": leaky_relu,
    "concat": concat,
}
"""Name -> factory of the anatomy, called as that of `mlas.KERNELS` is; operators that only move codes are all `Moved`."""
