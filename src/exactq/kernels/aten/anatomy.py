"""The anatomies of ATen's quantized kernels: for each factory of a kernel one of the same name and arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod

import numpy as np
import torch

from exactq.kernels.anatomy import (
    Anatomy,
    Element,
    Function,
    Lines,
    Place,
    Read,
    Shape,
    concatenated,
    elementwise,
    max_pool,
    window_reads,
)
from exactq.kernels.aten import plain
from exactq.kernels.aten.isa import BLOCK, LANES
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_zero
from exactq.numerics.scalars import float32, scalar

EIGHTS = 8
"""Channels that a turn of the adaptive pools and of joining images takes."""


def quantize_per_tensor(y: Grid) -> Function:
    """torch.quantize_per_tensor of one real."""
    return Function(elementwise, lambda e: plain.quantize(float32(float(e.values[0])), y))


def add(a: Grid, b: Grid, y: Grid, *, relu: bool = False) -> Function:
    """quantized::add and add_relu."""
    return _looped(lambda e, *, body: plain.add(e.codes, (a, b, y), relu=relu, body=body))


def mul(a: Grid, b: Grid, y: Grid, *, relu: bool = False) -> Function:
    """quantized::mul and mul_relu."""
    return _looped(lambda e, *, body: plain.mul(e.codes, (a, b, y), relu=relu, body=body))


def sigmoid(x: Grid, y: Grid) -> Function:
    """quantized::sigmoid: Sleef's exponential in vectors, the C library's for what is left over, as torch.sigmoid has both."""

    def lines(e: Element, *, body: bool) -> Lines:
        before = np.float32(plain.decoded(e.codes[0], x, body=False).value)
        result = torch.sigmoid(torch.full((BLOCK if body else 1,), float(before)))[:1]
        return plain.applied(e.codes[0], "sigmoid", scalar(result), x, y, body=body, plainly=True)

    return _looped(lines)


def hardswish(x: Grid, y: Grid) -> Function:
    """quantized::hardswish."""
    return _unary("hardswish", plain.hard_swish, x, y)


def leaky_relu(x: Grid, y: Grid, *, slope: float) -> Function:
    """quantized::leaky_relu."""
    return _unary("leaky_relu", lambda v: plain.leaky(v, slope), x, y)


def _unary(name: str, f: Callable[[np.float32], np.float32], x: Grid, y: Grid) -> Function:
    def lines(e: Element, *, body: bool) -> Lines:
        before = np.float32(plain.decoded(e.codes[0], x, body=body).value)
        return plain.applied(e.codes[0], name, f(before), x, y, body=body, plainly=False)

    return _looped(lines)


def _looped(lines: Callable[..., Lines]) -> Function:
    """An elementwise operator: whole blocks of memory are the vector loop's, the elements at its end are made one by one."""

    def both(e: Element) -> Lines:
        shape = tuple(torch.broadcast_shapes(*e.shapes))
        index, size = memory_place(e.at, shape), prod(shape)
        body = index < size // BLOCK * BLOCK
        return (plain.where(index, size, BLOCK, "element", body=body), *lines(e, body=body))

    return Function(elementwise, both)


def memory_place(at: Place, shape: Shape) -> int:
    """The position in memory of an element: the last axis fastest, but of images of two and three axes the channels.

    >>> memory_place((0, 1, 0, 2), (1, 4, 1, 3)), memory_place((0, 1, 2), (1, 4, 3))
    (9, 5)
    """
    order = (0, *range(2, len(shape)), 1) if len(shape) in (4, 5) else range(len(shape))
    index = 0
    for axis in order:
        index = index * shape[axis] + at[axis]
    return index


def concat(xs: Sequence[Grid], y: Grid, *, axis: int) -> Function:
    """quantized::cat: images joined at their channels by eights of channels of each, everything else through reals."""

    def lines(e: Element) -> Lines:
        (code,), (read,) = e.codes, e.reads
        x, channels = xs[read.operand], e.shapes[read.operand][1] if len(e.at) > 1 else 1
        if len(e.at) != 4 or axis % 4 != 1:
            before = plain.decoded(code, x, body=False)
            return (before, *plain.quantize(np.float32(before.value), y))
        assert read.place is not None
        body = read.place[1] < channels // EIGHTS * EIGHTS
        before = plain.decoded(code, x, body=body)
        told = plain.where(read.place[1], channels, EIGHTS, "channel", body=body)
        return (told, before, *plain.encode(np.float32(before.value), y, body=body))

    return Function(concatenated(axis), lines)


def average_pool(
    x: Grid,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil: bool = False,
    count_include_pad: bool = True,
    isa: str,
) -> Function:
    """avg_pool1d, 2d and 3d, with the arguments of `pool.average_pool`."""

    def lines(e: Element) -> Lines:
        _, channels, *image = e.shapes[0]
        begins = [p * s - b for p, s, b in zip(e.at[2:], stride, padding, strict=True)]
        padded = prod(min(b + k, n + p) - b for b, k, n, p in zip(begins, kernel, image, padding, strict=True))
        count = padded if count_include_pad else sum(read.place is not None for read in e.reads)
        # A row of pixels is an image of one row: its channels are last only where there is one of either.
        row = len(kernel) == 1 and channels > 1 and image[0] > 1
        body = not row and e.at[1] < channels // LANES[isa] * LANES[isa]
        told = plain.where(e.at[1], channels, LANES[isa], "channel", body=body)
        return (told, *plain.average(e, count, x, body=body))

    return Function(window_reads(kernel, stride, padding), lines, outside=scalar_zero(x))


def adaptive_average_pool(x: Grid, *, output: Sequence[int]) -> Function:
    """adaptive_avg_pool1d and 2d, with the arguments of `pool.adaptive_average_pool`."""

    def lines(e: Element) -> Lines:
        channels = e.shapes[0][1]
        body = len(output) > 1 and e.at[1] < channels // EIGHTS * EIGHTS
        told = plain.where(e.at[1], channels, EIGHTS, "channel", body=body)
        return (told, *plain.adaptive(e, x, body=body))

    return Function(part_reads(output), lines)


def mean(x: Grid, *, dims: Sequence[int], keep: bool) -> Function:
    """The mean over the last axes, with the arguments of `pool.mean`."""
    return Function(axis_reads(dims, keep=keep), lambda e: plain.mean(e, x))


def axis_reads(dims: Sequence[int], *, keep: bool) -> Callable[[Place, Sequence[Shape]], Sequence[Read]]:
    """The reads of a mean over the axes `dims`, which the result keeps with one element each, or does not have."""

    def reads(at: Place, shapes: Sequence[Shape]) -> Sequence[Read]:
        (shape,) = shapes
        over = {axis % len(shape) for axis in dims}
        rest = iter(i for axis, i in enumerate(at) if not (keep and axis in over))
        spans = [range(size) if axis in over else (next(rest),) for axis, size in enumerate(shape)]
        return [Read(0, place) for place in product(*spans)]

    return reads


def part_reads(output: Sequence[int]) -> Callable[[Place, Sequence[Shape]], Sequence[Read]]:
    """The reads of an adaptive pool: part i of an axis of n pixels begins at ⌊i·n/parts⌋ and ends before ⌈(i + 1)·n/parts⌉."""

    def reads(at: Place, shapes: Sequence[Shape]) -> Sequence[Read]:
        spans = [
            range(i * size // parts, -((i + 1) * size // -parts))
            for i, size, parts in zip(at[2:], shapes[0][2:], output, strict=True)
        ]
        return [Read(0, (*at[:2], *pixel)) for pixel in product(*spans)]

    return reads


ANATOMIES: Mapping[str, Callable[..., Anatomy]] = {
    "quantize_per_tensor": quantize_per_tensor,
    "add": add,
    "mul": mul,
    "sigmoid": sigmoid,
    "hardswish": hardswish,
    "leaky_relu": leaky_relu,
    "concat": concat,
    "average_pool": average_pool,
    "adaptive_average_pool": adaptive_average_pool,
    "mean": mean,
    "max_pool": max_pool,
}
"""Name -> factory of the anatomy, called as that of the kernel is."""
