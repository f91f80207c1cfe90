"""The anatomies of FBGEMM's kernels: for each factory of a kernel one of the same name and arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from exactq.kernels.accumulators import channel_scales, per_axis
from exactq.kernels.anatomy import Anatomy, FloatBias, Lines, Products, convolution_terms, matrix_terms, neighbours
from exactq.kernels.fbgemm import plain
from exactq.kernels.fbgemm.dispatch import depthwise_fast
from exactq.kernels.fbgemm.isa import SATURATES
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_scale
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
    isa: str,
) -> Products:
    """quantized::conv1d, 2d and 3d, with the arguments of `fbgemm.conv`."""
    rank = weight.ndim - 2
    places = {
        "stride": per_axis(stride, rank),
        "padding": per_axis(padding, rank) * 2,
        "dilation": per_axis(dilation, rank),
    }
    fast = depthwise_fast(weight.shape, **places, groups=groups)
    terms = convolution_terms(
        tuple(weight.shape),
        stride=places["stride"],
        begins=places["padding"][:rank],
        dilation=places["dilation"],
        groups=groups,
    )
    pairs = neighbours if SATURATES[isa] or fast else None
    return Products(x, w, weight, _bias(bias, x, w), terms, 1, pairs, _finish(bias, x, w, y, relu=relu))


def linear(weight: Tensor, bias: Tensor | None, *, x: Grid, w: Grid, y: Grid, relu: bool = False, isa: str) -> Products:
    """quantized::linear, with the arguments of `fbgemm.linear`."""
    pairs = neighbours if SATURATES[isa] else None
    return Products(x, w, weight, _bias(bias, x, w), matrix_terms, -1, pairs, _finish(bias, x, w, y, relu=relu))


def _bias(bias: Tensor | None, x: Grid, w: Grid) -> FloatBias | None:
    return None if bias is None else FloatBias(bias, scalar_scale(x) * channel_scales(w, bias.numel()))


def _finish(bias: Tensor | None, x: Grid, w: Grid, y: Grid, *, relu: bool) -> Callable[[int, int], Lines]:
    def finish(acc: int, channel: int) -> Lines:
        b = None if bias is None else scalar(bias.flatten()[channel])
        return plain.requantize(acc, b, x, w, y, channel, relu=relu)

    return finish


ANATOMIES: Mapping[str, Callable[..., Anatomy]] = {"conv": conv, "linear": linear}
"""Name -> factory of the anatomy, called as that of the kernel is."""
