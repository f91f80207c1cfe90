"""The arithmetic of oneDNN's int8 kernels as PyTorch's engine `onednn` calls them, bit for bit on the ISAs of `isa`.

PyTorch hands scales over as reciprocals: r(s) = fl(1 / fl(1 / s)) may differ from s in the last bit.
σ = fl(r(sx)·sw) for convolutions, fl(r(sx)·r(sw)) for linear layers
v = fl(fl(fl(acc)·σ) + b), then max(v, 0) with `relu`; the bias b stays real
y = rint(clamp(fl(fl(v · fl(1 / fl(1 / fl(1 / sy)))) + zy), 0, 255)): the zero is added before the rounding
The reference kernel, which runs for groups that no vector kernel takes, multiplies by r(sx) and sw one after the other and
divides by fl(1 / fl(1 / sy)). Pairs saturate, where the instruction set does it, among the channels of one tap, and the taps on
padding are exact; depthwise and reference kernels never saturate.
(oneDNN cpu/x64/jit_uni_x8s8s32x_conv_kernel.cpp, cpu/ref_convolution_int8.cpp; ATen native/quantized/cpu/qconv.cpp)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exactq.kernels import accumulators, pairs
from exactq.kernels.accumulators import Kernel, channel_scales, per_axis
from exactq.kernels.onednn.isa import SATURATES
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_scale, scalar_zero, stored_range


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
) -> Kernel:
    """The quantized convolution: uint8 codes (n, in, *image) of `x` -> codes (n, out, *image) of `y`.

    `weight` holds signed codes of `w` (out, in/groups, *kernel) with zero 0; `bias` float32 reals (out,).
    """
    rank, channels = weight.ndim - 2, weight.shape[0]
    places = {
        "stride": per_axis(stride, rank),
        "padding": per_axis(padding, rank) * 2,
        "dilation": per_axis(dilation, rank),
        "groups": groups,
    }
    plain = reference(weight, groups)
    excess = None
    if SATURATES[isa] and not plain and not _depthwise(weight, groups):
        excess = pairs.convolution_excess(weight, zero=0, within_taps=True, **places)  # type: ignore[arg-type]
    accumulate = accumulators.convolution(weight.int(), x=x, excess=excess, **places)  # type: ignore[arg-type]
    scales = (twice_inverted(x.scale.reshape(())), channel_scales(w, channels))
    requantize = _requantization(bias, scales, y, rank=rank, relu=relu, reference=plain)
    return lambda codes: requantize(accumulate(codes))


def linear(weight: Tensor, bias: Tensor | None, *, x: Grid, w: Grid, y: Grid, relu: bool = False, isa: str) -> Kernel:
    """The quantized linear layer: uint8 codes (…, in) of `x` -> codes (…, out) of `y`; `weight` (out, in)."""
    excess = _matrix_excess(weight) if SATURATES[isa] else None
    accumulate = accumulators.matrix(weight.int(), x=x, excess=excess)
    scales = (twice_inverted(scalar_scale(x)), twice_inverted(channel_scales(w, weight.shape[0])))
    requantize = _requantization(bias, scales, y, rank=0, relu=relu, reference=False)
    return lambda codes: requantize(accumulate(codes))


def _matrix_excess(weight: Tensor) -> Kernel | None:
    """What saturation adds to a linear layer's sums: between 385 and 767 inputs are taken in two runs, and pairs restart there.

    cpu/gemm/s8x8s32 get_k_padd: blocks of 384, but two equal ones where that would leave less than a block (measured).
    """
    depth = weight.shape[1]
    first = (depth + 1) // 2
    if not 384 < depth < 768 or first % 2 == 0:
        return pairs.matrix_excess(weight)

    def apart(rows: Tensor) -> Tensor:
        return torch.cat([rows[..., :first], torch.zeros_like(rows[..., :1]), rows[..., first:]], -1)

    excess = pairs.matrix_excess(apart(weight))
    return None if excess is None else lambda codes: excess(apart(codes))


def reference(weight: Tensor, groups: int) -> bool:
    """Whether a convolution runs in oneDNN's reference kernel: groups whose channels do not fill blocks of 4, not depthwise."""
    return groups > 1 and not _depthwise(weight, groups) and bool(weight.shape[1] % 4 or weight.shape[0] // groups % 4)


def _depthwise(weight: Tensor, groups: int) -> bool:
    return groups > 1 and weight.shape[1] == 1 and weight.shape[0] == groups


def twice_inverted(scale: Tensor) -> Tensor:
    """fl(1 / fl(1 / s)), the first quotient in float64: what is left of a scale that is handed over as its reciprocal."""
    return 1 / (1 / scale.double()).to(torch.float32)


def _requantization(
    bias: Tensor | None, scales: tuple[Tensor, Tensor], y: Grid, *, rank: int, relu: bool, reference: bool
) -> Kernel:
    shape = (-1, *[1] * rank)
    sx, sw = scales[0], scales[1].reshape(shape)
    addend = None if bias is None else bias.to(torch.float32).reshape(shape)
    sy, zero, (lo, hi) = twice_inverted(scalar_scale(y)), scalar_zero(y), stored_range(y)

    def requantize(acc: Tensor) -> Tensor:
        on = acc.device
        v = acc.to(torch.float32) * sx.to(on) * sw.to(on) if reference else acc.to(torch.float32) * (sx * sw).to(on)
        if addend is not None:
            v.add_(addend.to(on))
        if relu:
            v.clamp_(min=0)
        v = v.div_(sy.to(on)) if reference else v.mul_((1 / sy).to(on))
        return v.add_(zero).clamp_(lo, hi).round_()

    return requantize


__all__ = ["SATURATES", "conv", "linear", "reference"]
