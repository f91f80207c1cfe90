"""The anatomies of the compiled loops: for each factory of a kernel one of the same name and arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np

from exactq.kernels.anatomy import Anatomy, Element, Function, Lines, concatenated, elementwise, window_reads
from exactq.kernels.aten.anatomy import axis_reads, part_reads
from exactq.kernels.aten.plain import hard_swish, leaky
from exactq.kernels.inductor import plain
from exactq.kernels.lines import decode
from exactq.numerics.formats import Grid
from exactq.numerics.scalars import float32


def quantize(y: Grid) -> Function:
    """quantized_decomposed.quantize_per_tensor of one real."""
    return Function(elementwise, lambda e: plain.encode(float32(float(e.values[0])), y))


def add(a: Grid, b: Grid, y: Grid, *, relu: bool = False) -> Function:
    """The compiled sum."""
    return _pair("add", a, b, y, relu=relu)


def mul(a: Grid, b: Grid, y: Grid, *, relu: bool = False) -> Function:
    """The compiled product."""
    return _pair("mul", a, b, y, relu=relu)


def _pair(name: str, a: Grid, b: Grid, y: Grid, *, relu: bool) -> Function:
    return Function(elementwise, lambda e: plain.pair((e.codes[0], e.codes[1]), (a, b, y), name, relu=relu))


def hardswish(x: Grid, y: Grid) -> Function:
    """The compiled hardswish."""
    return Function(elementwise, lambda e: plain.applied(e.codes[0], "hardswish", hard_swish, x, y))


def leaky_relu(x: Grid, y: Grid, *, slope: float) -> Function:
    """The compiled leaky_relu."""
    return Function(elementwise, lambda e: plain.applied(e.codes[0], "leaky_relu", lambda v: leaky(v, slope), x, y))


def concat(xs: Sequence[Grid], y: Grid, *, axis: int) -> Function:
    """The compiled cat: whichever operand holds the element is decoded and encoded."""

    def lines(e: Element) -> Lines:
        before = decode(e.codes[0], xs[e.reads[0].operand])
        return (before, *plain.encode(np.float32(before.value), y))

    return Function(concatenated(axis), lines)


def average_pool(
    x: Grid, *, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], count_include_pad: bool = True
) -> Function:
    """The compiled avg_pool1d, 2d and 3d."""

    def lines(e: Element) -> Lines:
        inside = sum(read.place is not None for read in e.reads)
        return plain.average(e, prod(kernel) if count_include_pad else inside, x)

    return Function(window_reads(kernel, stride, padding), lines)


def adaptive_average_pool(x: Grid, *, output: Sequence[int]) -> Function:
    """The compiled adaptive_avg_pool1d, 2d and 3d."""
    return Function(part_reads(output), lambda e: plain.average(e, len(e.reads), x))


def mean(x: Grid, *, dims: Sequence[int], keep: bool) -> Function:
    """The compiled mean over the axes `dims`."""
    return Function(axis_reads(dims, keep=keep), lambda e: plain.average(e, len(e.reads), x))


ANATOMIES: Mapping[str, Callable[..., Anatomy]] = {
    "quantize": quantize,
    "add": add,
    "mul": mul,
    "hardswish": hardswish,
    "leaky_relu": leaky_relu,
    "concat": concat,
    "average_pool": average_pool,
    "adaptive_average_pool": adaptive_average_pool,
    "mean": mean,
}
"""Name -> factory of the anatomy, called as that of the kernel is."""
