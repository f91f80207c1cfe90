"""The anatomies of oneDNN's kernels: for each factory of a kernel one of the same name and arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

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
    isa: str,
) -> Products:
    """quantized::conv1d, 2d and 3d, with the arguments of `onednn.conv`."""
    rank = weight.ndim - 2
    terms = convolution_terms(
        tuple(weight.shape),
        stride=per_axis(stride, rank),
        begins=per_axis(padding, rank),
        dilation=per_axis(dilation, rank),
        groups=groups,
    )
    alone, plainly = depthwise(weight.shape, groups), isa == "avx2" and reference(weight.shape, groups)
    pairs = partial(_within_taps, weight.shape[1]) if SATURATES[isa] and not plainly and not alone else None
    cubes = isa == "avx512vnni" and rank == 3 and alone and any(d > 1 for d in per_axis(dilation, rank))
    apart = plainly or isa == "avx512vnni" and not cubes
    finish = _finish(bias, x, w, y, relu=relu, inverted=False, apart=apart, divides=plainly)
    return Products(x, w, weight, _bias(bias, x, w), terms, 1, pairs, finish)


def linear(weight: Tensor, bias: Tensor | None, *, x: Grid, w: Grid, y: Grid, relu: bool = False, isa: str) -> Products:
    """quantized::linear, with the arguments of `onednn.linear`."""
    pairs = partial(_within_runs, runs(weight.shape[1])) if SATURATES[isa] else None
    finish = _finish(bias, x, w, y, relu=relu, inverted=True, apart=isa == "avx512vnni", divides=False)
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


def _finish(bias: Tensor | None, x: Grid, w: Grid, y: Grid, **rounding: bool) -> Callable[[int, int], Lines]:
    def finish(acc: int, channel: int) -> Lines:
        b = None if bias is None else scalar(bias.flatten()[channel])
        return plain.requantize(acc, b, x, w, y, channel, **rounding)

    return finish


ANATOMIES: Mapping[str, Callable[..., Anatomy]] = {"conv": conv, "linear": linear}
"""Name -> factory of the anatomy, called as that of the kernel is."""
