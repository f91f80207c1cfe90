"""The arithmetic of FBGEMM's int8 kernels as PyTorch calls them, bit for bit on the instruction sets of `isa`.

acc = Σ (x − zx)·(w − zw) in int32, with pairs saturating where the instruction set does, and in the fast depthwise kernel
everywhere (`depthwise_fast`): K runs over (kernel axes, input channel) of a group, and padded pixels hold zx, whichever of the
pointwise, im2col, groupwise and depthwise kernels runs. What becomes of it is in `requantization`. Evidence:
targets/pytorch/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exactq.kernels import accumulators, pairs
from exactq.kernels.accumulators import Kernel, Layer, centred, channel_scales, per_axis
from exactq.kernels.aten import dynamic_grid, quantize_per_tensor
from exactq.kernels.fbgemm.anatomy import ANATOMIES
from exactq.kernels.fbgemm.dispatch import depthwise_fast, undecided
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

    `weight` holds signed codes of `w` (out, in/groups, *kernel); `bias` float32 reals (out,). One number for all
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
    accumulate = accumulators.convolution(centred(weight, w), x=x, excess=excess, **places)  # type: ignore[arg-type]
    requantize = requantization(bias, x=x, w=w, y=y, channels=weight.shape[0], rank=rank, relu=relu)
    return Layer(accumulate, requantize)


def linear(weight: Tensor, bias: Tensor | None, *, x: Grid, w: Grid, y: Grid, relu: bool = False, isa: str) -> Kernel:
    """The quantized linear layer: uint8 codes (…, in) of `x` -> codes (…, out) of `y`; `weight` (out, in)."""
    excess = pairs.matrix_excess(weight) if SATURATES[isa] else None
    accumulate = accumulators.matrix(centred(weight, w), x=x, excess=excess)
    requantize = requantization(bias, x=x, w=w, y=y, channels=weight.shape[0], rank=0, relu=relu)
    return Layer(accumulate, requantize)


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


__all__ = ["ANATOMIES", "SATURATES", "conv", "depthwise_fast", "linear", "linear_dynamic", "undecided"]
