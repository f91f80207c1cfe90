"""QLinearConv of ONNX Runtime's CPU kernels (core/providers/cpu/quantization/qlinearconv.cc, mlas qgemm and convsym).

acc = int32(Σ (x − zx)·(w − zw) + bias)      with pairs saturating where the instruction set does (`pairs`)
y   = clamp(rint(fl(float(acc) · fl(fl(sx·sw) / sy))) + zy)
The image is padded with the code zx, which stands for 0. The bias is added as int32 with wraparound, before the conversion to
float32. Whether MLAS takes its im2col, indirect or symmetric kernel does not show in the integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exactq.errors import ModelError
from exactq.kernels import accumulators, pairs
from exactq.kernels.accumulators import Accumulator, Kernel, Layer, channel_scales, per_axis
from exactq.kernels.mlas.isa import saturates
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import requantization, scalar_scale, scalar_zero


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
) -> Kernel:
    """The quantized convolution: codes (n, in, *image) of `x` -> codes (n, out, *image) of `y`.

    `weight` holds codes of `w` (out, in/groups, *kernel), with one, two or three kernel axes; `bias` int32 codes (out,) of
    scale sx·sw. `stride`, `padding` and `dilation` have one number for all axes or one an axis; `padding` may also have two an
    axis, all begins before all ends as in ONNX. Relu is not an operator here: it is the lower end of `y`.
    """
    accumulate = conv_accumulator(
        weight, bias, x=x, w=w, stride=stride, padding=padding, dilation=dilation, groups=groups, isa=isa
    )
    factor = output_factor(x, w, y, channels=weight.shape[0]).reshape(-1, *[1] * (weight.ndim - 2))

    requantize = requantization(factor, y)
    return Layer(accumulate, requantize)


def conv_accumulator(
    weight: Tensor,
    bias: Tensor | None,
    *,
    x: Grid,
    w: Grid,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
    isa: str,
) -> Accumulator:
    """The int32 accumulator of `conv`, bias included, as float32 or float64 holding int32 values (n, out, *image)."""
    rank = weight.ndim - 2
    if rank not in (1, 2, 3):
        raise ModelError(f"a convolution's weight has one to three kernel axes, not {rank}")
    if w.zero.unique().numel() > 1:
        raise ModelError("ONNX Runtime's QLinearConv refuses weight zero points that differ between channels: use one")
    stride, dilation = per_axis(stride, rank), per_axis(dilation, rank)
    padding = tuple(padding) if len(padding) == 2 * rank else per_axis(padding, rank) * 2
    depthwise = weight.shape[1] == 1 and weight.shape[0] == groups
    excess = None
    if saturates(isa, x, w, depthwise=depthwise):
        excess = pairs.convolution_excess(
            weight, zero=scalar_zero(x), stride=stride, padding=padding, dilation=dilation, groups=groups
        )
    centred = weight.to(torch.int32) - w.zero.flatten()[0]
    return accumulators.convolution(
        centred, bias, x=x, stride=stride, padding=padding, dilation=dilation, groups=groups, excess=excess
    )


def output_factor(x: Grid, w: Grid, y: Grid, *, channels: int) -> Tensor:
    """fl(fl(sx·sw) / sy) for each output channel, float32 (channels,)."""
    return (scalar_scale(x) * channel_scales(w, channels)) / scalar_scale(y)
