"""The arithmetic of PyTorch's QNNPACK on x86-64 (SSE2), bit for bit: int16 products summed in int32, which never saturate.

b̂ = clip(rint(fl(b · fl(1 / fl(sx·sw)))))        sx·sw in float64, then float32: the bias as int32 codes
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
from exactq.kernels.accumulators import Kernel, channel_scales, per_axis
from exactq.kernels.aten import dynamic_grid, quantize_per_tensor
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
) -> Kernel:
    """The quantized convolution: uint8 codes (n, in, *image) of `x` -> codes (n, out, *image) of `y`.

    `weight` holds signed codes of `w` (out, in/groups, *kernel) with zero 0; `bias` float32 reals (out,).
    """
    rank = weight.ndim - 2
    accumulate = accumulators.convolution(
        weight.int(),
        _codes(bias, x, w, weight.shape[0]),
        x=x,
        stride=per_axis(stride, rank),
        padding=per_axis(padding, rank) * 2,
        dilation=per_axis(dilation, rank),
        groups=groups,
    )
    cube = weight.shape[1:] == (1, 3, 3, 3) and weight.shape[0] == groups > 1
    requantize = _requantization(x, w, y, channels=weight.shape[0], rank=rank, relu=relu, once=cube)
    return lambda codes: requantize(accumulate(codes))


def linear(weight: Tensor, bias: Tensor | None, *, x: Grid, w: Grid, y: Grid, relu: bool = False) -> Kernel:
    """The quantized linear layer: uint8 codes (…, in) of `x` -> codes (…, out) of `y`; `weight` (out, in)."""
    accumulate = accumulators.matrix(weight.int(), _codes(bias, x, w, weight.shape[0]), x=x)
    requantize = _requantization(x, w, y, channels=weight.shape[0], rank=0, relu=relu)
    return lambda codes: requantize(accumulate(codes))


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


def _codes(bias: Tensor | None, x: Grid, w: Grid, channels: int) -> Tensor | None:
    """The int32 codes of a real bias, as float64: at::quantize_per_tensor or _per_channel to qint32."""
    if bias is None:
        return None
    scale = (channel_scales(w, channels).double() * scalar_scale(x).double()).to(torch.float32)
    codes = (bias.to(torch.float32) * (1 / scale)).round_().double()
    return codes.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf).clamp_(-(2.0**31), 2.0**31 - 1)


def _requantization(x: Grid, w: Grid, y: Grid, *, channels: int, rank: int, relu: bool, once: bool = False) -> Kernel:
    """From sums to codes; with `once` the product is not rounded to float32 before it is rounded to an integer."""
    factor = (channel_scales(w, channels) * scalar_scale(x) * (1 / scalar_scale(y))).reshape(-1, *[1] * rank)
    finish = packing_to_codes(y, relu=relu)
    if once:
        return lambda acc: finish(acc.double() * factor.to(acc.device)).to(torch.float32)
    return lambda acc: finish(acc.to(torch.float32) * factor.to(acc.device))


__all__ = ["adaptive_average_pool", "add", "adds", "average_pool", "conv", "hardswish", "linear", "linear_dynamic"]
