"""The arithmetic of PyTorch's QNNPACK on x86-64 (SSE2), bit for bit: int16 products summed in int32, which never saturate.

b̂ = rint(fl(b · fl(1 / fl(sx·sw))))              sx·sw in float64, then float32: the bias as int32 codes
    From 2³¹ on b̂ is 2³¹ − 1 in linear layers and `pointwise` convolutions, and −2³¹ in all others; below −2³¹ it is −2³¹.
m = fl(fl(sw·sx) · fl(1 / sy))
y = clamp(sat16(sat16(cvt(fl(fl(acc + b̂)·m))) + zy)), with acc + b̂ in int32 that wraps
Depthwise convolutions of 3×3×3 pixels round acc·m once, without fl (q8dwconv/mp8x27p-sse2.c; measured).
(aten/src/ATen/native/quantized/cpu/qconv.cpp, qlinear.cpp; qnnpack q8gemm/4x4c2-sse2.c, requantization/fp32-sse2.c)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exactq.kernels import accumulators
from exactq.kernels.accumulators import Kernel, Layer, centred, channel_scales, per_axis
from exactq.kernels.aten import dynamic_grid, quantize_per_tensor
from exactq.kernels.qnnpack.anatomy import ANATOMIES
from exactq.kernels.qnnpack.bias import bias_codes, bias_steps, pointwise
from exactq.kernels.qnnpack.elementwise import add, adds, hardswish
from exactq.kernels.qnnpack.pool import adaptive_average_pool, average_pool
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import packing_to_codes, scalar_scale


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
) -> Kernel:
    """The quantized convolution: uint8 codes (n, in, *image) of `x` -> codes (n, out, *image) of `y`.

    `weight` holds signed codes of `w` (out, in/groups, *kernel); `bias` float32 reals (out,). With `real_bias`
    it is what QNNPACK would answer if it did not round the bias, fl(fl(acc) + fl(b / fl(sx·sw))): what rounding is measured by.
    """
    rank = weight.ndim - 2
    places = {
        "stride": per_axis(stride, rank),
        "padding": per_axis(padding, rank) * 2,
        "dilation": per_axis(dilation, rank),
    }
    codes = (
        None
        if real_bias
        else bias_codes(bias, x, w, weight.shape[0], saturates=pointwise(weight.shape[2:], places["stride"], places["padding"]))
    )
    accumulate = accumulators.convolution(centred(weight, w), codes, x=x, **places, groups=groups)  # type: ignore[arg-type]
    cube = weight.shape[1:] == (1, 3, 3, 3) and weight.shape[0] == groups > 1
    addend = bias_steps(bias, x, w, weight.shape[0]) if real_bias else None
    requantize = _requantization(addend, x, w, y, channels=weight.shape[0], rank=rank, relu=relu, once=cube)
    return Layer(accumulate, requantize)


def linear(
    weight: Tensor, bias: Tensor | None, *, x: Grid, w: Grid, y: Grid, relu: bool = False, real_bias: bool = False
) -> Kernel:
    """The quantized linear layer: uint8 codes (…, in) of `x` -> codes (…, out) of `y`; `weight` (out, in).

    `real_bias` as in `conv`.
    """
    channels = weight.shape[0]
    codes = None if real_bias else bias_codes(bias, x, w, channels, saturates=True)
    addend = bias_steps(bias, x, w, channels) if real_bias else None
    accumulate = accumulators.matrix(centred(weight, w), codes, x=x)
    requantize = _requantization(addend, x, w, y, channels=channels, rank=0, relu=relu)
    return Layer(accumulate, requantize)


def linear_dynamic(weight: Tensor, bias: Tensor | None, *, w: Grid, relu: bool = False) -> Kernel:
    """quantized::linear_dynamic: reals (…, in), encoded on a grid that is made for them -> reals (…, out).

    y = fl(fl(fl(acc)·fl(sx·sw)) + b). QNNPACK takes all 256 codes, whatever reduce_range says.
    """
    scales = channel_scales(w, weight.shape[0])

    def apply(reals: Tensor) -> Tensor:
        x = dynamic_grid(reals)
        acc = accumulators.matrix(weight.int(), x=x)(quantize_per_tensor(x)(reals)).to(torch.float32)
        made = acc * (scalar_scale(x) * scales)
        made = made if bias is None else made.add_(bias.to(torch.float32))
        return made.clamp_(min=0) if relu else made

    return apply


def _requantization(
    addend: Tensor | None, x: Grid, w: Grid, y: Grid, *, channels: int, rank: int, relu: bool, once: bool = False
) -> Kernel:
    """From sums to codes; with `once` the product is not rounded to float32 before it is rounded to an integer."""
    shape = (-1, *[1] * rank)
    factor = (channel_scales(w, channels) * scalar_scale(x) * (1 / scalar_scale(y))).reshape(shape)
    finish = packing_to_codes(y, relu=relu)

    def requantize(acc: Tensor) -> Tensor:
        v = acc.double() if once else acc.to(torch.float32)
        if addend is not None:
            v = v + addend.reshape(shape).to(acc.device)
        return finish(v * factor.to(acc.device)).to(torch.float32)

    return requantize


__all__ = [
    "ANATOMIES",
    "adaptive_average_pool",
    "add",
    "adds",
    "average_pool",
    "conv",
    "hardswish",
    "linear",
    "linear_dynamic",
]
