"""The arithmetic of FBGEMM's int8 kernels as PyTorch calls them, bit for bit on the instruction sets of `isa`.

acc = Σ (x − zx)·w in int32, with pairs saturating where the instruction set does, and in the fast depthwise kernel everywhere
(`depthwise_fast`): K runs over (kernel axes, input channel) of a group, and padded pixels hold zx, whichever of the pointwise,
im2col, groupwise and depthwise kernels runs. What becomes of it is in `requantization`. Evidence: targets/pytorch/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exactq.kernels import accumulators, pairs
from exactq.kernels.accumulators import Kernel, channel_scales, per_axis
from exactq.kernels.aten import dynamic_grid, quantize_per_tensor
from exactq.kernels.fbgemm.isa import SATURATES
from exactq.kernels.fbgemm.requantization import requantization
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_scale, scalar_zero
from exactq.numerics.rounding import fma


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

    `weight` holds signed codes of `w` (out, in/groups, *kernel) with zero 0; `bias` float32 reals (out,). One number for all
    axes or one an axis for `stride`, `padding` and `dilation`; the padding is the same on both sides.
    """
    rank = weight.ndim - 2
    places = {
        "stride": per_axis(stride, rank),
        "padding": per_axis(padding, rank) * 2,
        "dilation": per_axis(dilation, rank),
        "groups": groups,
    }
    excess = None
    if SATURATES[isa] or depthwise_fast(weight.shape, **places):  # type: ignore[arg-type]
        excess = pairs.convolution_excess(weight, zero=scalar_zero(x), **places)  # type: ignore[arg-type]
    accumulate = accumulators.convolution(weight.int(), x=x, excess=excess, **places)  # type: ignore[arg-type]
    requantize = requantization(bias, x=x, w=w, y=y, channels=weight.shape[0], rank=rank, relu=relu)
    return lambda codes: requantize(accumulate(codes))


def depthwise_fast(
    shape: Sequence[int], *, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Whether a convolution runs in FBGEMM's depthwise kernels, which are AVX2 code and saturate pairs of taps everywhere.

    FbgemmConv.cc takeDepthWiseFastPath: groups of one channel, a multiple of 8 of them, each with one output or two; kernels of
    3, 5 or 7 pixels along each axis, square in the last two, padded to keep the image, without dilation.
    """
    out, per_group, *kernel = shape
    rank = len(kernel)
    return (
        per_group == 1
        and groups % 8 == 0
        and out in (groups, 2 * groups)
        and rank >= 2
        and kernel[-1] == kernel[-2]
        and all(k in (3, 5, 7) for k in kernel)
        and all(s in (1, 2) for s in stride)
        and all(d == 1 for d in dilation)
        and tuple(padding) == tuple((k - 1) // 2 for k in kernel) * 2
    )


def undecided(
    shape: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    isa: str,
) -> bool:
    """Whether what FBGEMM answers is not predicted: with AVX2 its groupwise kernels, where groups are left over.

    They take 8 output channels a turn, so 4 groups of 2 or 2 groups of 4, and what the last turn makes too much is written over
    the first channels of the next pixel (torch 2.13, measured under emulation). Kernels are of 3 pixels, padded by 1.
    """
    out, per_group, *kernel = shape
    groupwise = len(kernel) > 1 and per_group in (2, 4) and out == per_group * groups and {*kernel} == {3} and {*padding} == {1}
    groupwise = groupwise and {*dilation} == {1} and {*stride} in ({1}, {2})
    together = 8 // per_group
    return isa == "avx2" and groupwise and groups > together and groups % together != 0


def linear(weight: Tensor, bias: Tensor | None, *, x: Grid, w: Grid, y: Grid, relu: bool = False, isa: str) -> Kernel:
    """The quantized linear layer: uint8 codes (…, in) of `x` -> codes (…, out) of `y`; `weight` (out, in)."""
    excess = pairs.matrix_excess(weight) if SATURATES[isa] else None
    accumulate = accumulators.matrix(weight.int(), x=x, excess=excess)
    requantize = requantization(bias, x=x, w=w, y=y, channels=weight.shape[0], rank=0, relu=relu)
    return lambda codes: requantize(accumulate(codes))


def linear_dynamic(
    weight: Tensor, bias: Tensor | None, *, w: Grid, relu: bool = False, reduce_range: bool = False, isa: str
) -> Kernel:
    """quantized::linear_dynamic: reals (…, in), encoded on a grid that is made for them -> reals (…, out).

    y = fma(fl(acc), fl(sx·sw), b), or fl(fl(acc)·fl(sx·sw)) without a bias.
    """
    excess = pairs.matrix_excess(weight) if SATURATES[isa] else None
    scales = channel_scales(w, weight.shape[0])

    def apply(reals: Tensor) -> Tensor:
        x = dynamic_grid(reals, reduce_range=reduce_range)
        acc = accumulators.matrix(weight.int(), x=x, excess=excess)(quantize_per_tensor(x)(reals)).to(torch.float32)
        factor = scalar_scale(x) * scales
        made = acc * factor if bias is None else fma(acc, factor, bias.to(torch.float32))
        return made.clamp_(min=0) if relu else made

    return apply


__all__ = ["SATURATES", "conv", "depthwise_fast", "linear", "linear_dynamic", "undecided"]
