"""The anatomies of oneDNN's kernels: for each factory of a kernel one of the same name and arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from exactq.kernels.accumulators import channel_scales, per_axis
from exactq.kernels.anatomy import Anatomy, FloatBias, Lines, Place, Products, convolution_terms, matrix_terms, neighbours
from exactq.kernels.onednn import plain
from exactq.kernels.onednn.dispatch import depthwise, reference, runs
from exactq.kernels.onednn.isa import SATURATES
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_scale
from exactq.numerics.scalars import scalar

Terms = Sequence[tuple[Place | None, Place]]


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
    inverted: bool = True,
    isa: str,
) -> Products:
    """quantized::conv1d, 2d and 3d, with the arguments of `onednn.conv`."""
    places = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _convolution(weight, bias, None, x, w, y, places, relu=relu, inverted=inverted, isa=isa)


def conv_add(
    weight: Tensor,
    bias: Tensor | None,
    *,
    added: Grid,
    x: Grid,
    w: Grid,
    y: Grid,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
    relu: bool = False,
    inverted: bool = True,
    isa: str,
) -> Products:
    """quantized::conv2d_add, with the arguments of `onednn.conv_add`."""
    places = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _convolution(weight, bias, added, x, w, y, places, relu=relu, inverted=inverted, isa=isa)


def _convolution(
    weight: Tensor,
    bias: Tensor | None,
    added: Grid | None,
    x: Grid,
    w: Grid,
    y: Grid,
    given: Mapping[str, Any],
    *,
    relu: bool,
    inverted: bool,
    isa: str,
) -> Products:
    rank, groups = weight.ndim - 2, int(given["groups"])
    stride, padding, dilation = (per_axis(given[name], rank) for name in ("stride", "padding", "dilation"))
    terms = convolution_terms(tuple(weight.shape), stride=stride, begins=padding, dilation=dilation, groups=groups)
    alone, plainly = depthwise(weight.shape, groups), isa == "avx2" and reference(weight.shape, groups)
    pairs = partial(_within_taps, weight.shape[1]) if SATURATES[isa] and not plainly and not alone else None
    cubes = isa == "avx512vnni" and rank == 3 and alone and any(d > 1 for d in dilation)
    way = plain.Way(apart=plainly or isa == "avx512vnni" and not cubes, divides=plainly, relu=relu)
    finish = _finish(bias, added, x, w, y, plain.Handed(x=inverted, w=False), way)
    return Products(x, w, weight, _bias(bias, x, w), terms, 1, pairs, finish, added)


def linear(
    weight: Tensor,
    bias: Tensor | None,
    *,
    x: Grid,
    w: Grid,
    y: Grid,
    relu: bool = False,
    inverted: bool = True,
    isa: str,
) -> Products:
    """quantized::linear, with the arguments of `onednn.linear`."""
    pairs = partial(_within_runs, runs(weight.shape[1])) if SATURATES[isa] else None
    way = plain.Way(apart=isa == "avx512vnni", divides=False, relu=relu)
    finish = _finish(bias, None, x, w, y, plain.Handed(x=inverted, w=inverted), way)
    return Products(x, w, weight, _bias(bias, x, w), matrix_terms, -1, pairs, finish)


def _within_taps(channels: int, terms: Terms) -> Iterator[tuple[int, ...]]:
    """The pairs of each tap's channels, of which an odd last one stands alone; taps on the padding are exact."""
    for first in range(0, len(terms), channels):
        if terms[first][0] is not None:
            for channel in range(first, first + channels, 2):
                yield tuple(range(channel, min(channel + 2, first + channels)))


def _within_runs(lengths: Sequence[int], terms: Terms) -> Iterator[tuple[int, ...]]:
    """The pairs of each run of inputs."""
    first = 0
    for length in lengths:
        for pair in neighbours(terms[first : first + length]):
            yield tuple(first + position for position in pair)
        first += length


def _bias(bias: Tensor | None, x: Grid, w: Grid) -> FloatBias | None:
    return None if bias is None else FloatBias(bias, scalar_scale(x) * channel_scales(w, bias.numel()))


def _finish(
    bias: Tensor | None, added: Grid | None, x: Grid, w: Grid, y: Grid, handed: plain.Handed, way: plain.Way
) -> Callable[..., Lines]:
    def finish(acc: int, channel: int, code: int = 0) -> Lines:
        b = None if bias is None else scalar(bias.flatten()[channel])
        joined = None if added is None else (code, added)
        return plain.requantize(acc, b, joined, x, w, y, channel, handed, way)

    return finish


ANATOMIES: Mapping[str, Callable[..., Anatomy]] = {"conv": conv, "conv_add": conv_add, "linear": linear}
"""Name -> factory of the anatomy, called as that of the kernel is."""
