"""The arithmetic of oneDNN's int8 kernels as PyTorch's engine `onednn` calls them, bit for bit on the ISAs of `isa`.

PyTorch hands scales over as reciprocals: r(s) = fl(1 / fl(1 / s)) may differ from s in the last bit. What torch.compile calls,
`onednn.qconv_pointwise` and `qlinear_pointwise`, gets them as they are: r(s) = s.
v = fl(fl(acc)·fl(r(sx)·sw)); linear layers take r(sw) in place of sw
v = fl(v + b), then max(v, 0) with `relu`; the bias b stays real
v = fma(q − z, r(s), v) before the relu, where codes q are added (`conv_add`); the reference kernel rounds twice
y = rint(clamp(fl(fl(v · fl(1 / r(sy))) + zy), 0, 255)): the zero is added before the rounding
With AVX512-VNNI (brgemm) one scale is multiplied after the other, v = fl(fl(fl(acc)·r(sx))·sw), but for dilated depthwise
convolutions of three axes. So it is in the reference kernel, which AVX2 runs for groups that no vector kernel takes; that one
also divides by r(sy). Pairs saturate, where the instruction set does it, among the channels of one tap, and the taps on padding
are exact; depthwise and reference kernels never saturate.
(oneDNN cpu/x64/jit_uni_x8s8s32x_conv_kernel.cpp, jit_brgemm_conv.cpp, cpu/ref_convolution_int8.cpp; ATen qconv.cpp)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exactq.kernels import accumulators, pairs
from exactq.kernels.accumulators import Accumulator, Kernel, Layer, channel_scales, per_axis
from exactq.kernels.aten import dynamic_scale
from exactq.kernels.onednn.anatomy import ANATOMIES
from exactq.kernels.onednn.dispatch import depthwise, reference, runs, undecided
from exactq.kernels.onednn.isa import SATURATES
from exactq.numerics.formats import UINT8, Grid
from exactq.numerics.requantization import scalar_scale, scalar_zero, stored_range
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
    inverted: bool = True,
    isa: str,
) -> Kernel:
    """The quantized convolution: uint8 codes (n, in, *image) of `x` -> codes (n, out, *image) of `y`.

    `weight` holds signed codes of `w` (out, in/groups, *kernel) with zero 0; `bias` float32 reals (out,). Not `inverted` scales
    are handed over as they are (`onednn.qconv_pointwise`).
    """
    places = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Layer(*_convolution(weight, bias, None, x, w, y, places, relu=relu, inverted=inverted, isa=isa))


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
) -> Callable[[Tensor, Tensor], Tensor]:
    """The convolution of images that adds codes of `added`, of its result's shape, before the relu: quantized::conv2d_add."""
    places = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Layer(*_convolution(weight, bias, added, x, w, y, places, relu=relu, inverted=inverted, isa=isa))


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
) -> tuple[Accumulator, Callable[..., Tensor]]:
    """From codes to sums, and from sums to codes."""
    rank, channels, groups = weight.ndim - 2, weight.shape[0], int(given["groups"])
    dilation = per_axis(given["dilation"], rank)
    places: dict[str, Any] = {"stride": per_axis(given["stride"], rank), "padding": per_axis(given["padding"], rank) * 2}
    places |= {"dilation": dilation, "groups": groups}
    plain = isa == "avx2" and reference(weight.shape, groups)
    excess = None
    if SATURATES[isa] and not plain and not depthwise(weight.shape, groups):
        excess = pairs.convolution_excess(weight, zero=0, within_taps=True, **places)
    accumulate = accumulators.convolution(weight.int(), x=x, excess=excess, **places)
    scales = (_handed(x.scale.reshape(()), inverted=inverted), channel_scales(w, channels))
    together = isa == "avx512vnni" and rank == 3 and any(d > 1 for d in dilation) and depthwise(weight.shape, groups)
    apart = plain or isa == "avx512vnni" and not together
    requantize = _requantization(
        bias, scales, y, added=added, rank=rank, relu=relu, apart=apart, divides=plain, inverted=inverted
    )
    return accumulate, requantize


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
) -> Kernel:
    """The quantized linear layer: uint8 codes (…, in) of `x` -> codes (…, out) of `y`; `weight` (out, in)."""
    excess = _matrix_excess(weight) if SATURATES[isa] else None
    accumulate = accumulators.matrix(weight.int(), x=x, excess=excess)
    scales = (_handed(scalar_scale(x), inverted=inverted), _handed(channel_scales(w, weight.shape[0]), inverted=inverted))
    requantize = _requantization(bias, scales, y, rank=0, relu=relu, apart=isa == "avx512vnni", inverted=inverted)
    return Layer(accumulate, requantize)


def linear_dynamic(
    weight: Tensor, bias: Tensor | None, *, w: Grid, relu: bool = False, reduce_range: bool = False, isa: str
) -> Kernel:
    """quantized::linear_dynamic: reals (…, in), encoded on a grid that is made for them -> reals (…, out).

    s is the grid's scale in float64, sx = fl(1 / fl(1 / s)): the codes are clamp(rint(fl(fl(x · fl(1 / sx)) + z))).
    """
    excess = _matrix_excess(weight) if SATURATES[isa] else None
    sw = twice_inverted(channel_scales(w, weight.shape[0]))

    def apply(reals: Tensor) -> Tensor:
        scale, zero = dynamic_scale(reals, reduce_range=reduce_range)
        sx = twice_inverted(torch.tensor(scale, dtype=torch.float64))
        x = Grid(UINT8, sx, torch.tensor(zero, dtype=torch.int32))
        codes = (reals * (1 / sx)).add_(zero).clamp_(0, 255).round_()
        acc = accumulators.matrix(weight.int(), x=x, excess=excess)(codes).to(torch.float32)
        made = acc * sx * sw if isa == "avx512vnni" else acc * (sx * sw)
        made = made if bias is None else made.add_(bias.to(torch.float32))
        return made.clamp_(min=0) if relu else made

    return apply


def _matrix_excess(weight: Tensor) -> Kernel | None:
    """What saturation adds to a linear layer's sums."""
    depth = weight.shape[1]
    if not (first := _odd(depth)):
        return pairs.matrix_excess(weight)

    excess = pairs.matrix_excess(paired(weight))
    return None if excess is None else lambda codes: excess(_apart(codes, first))


def paired(weight: Tensor) -> Tensor:
    """The weights (out, in/groups, …) with a zero wherever a pair ends early: behind an odd number of channels or a run."""
    if weight.ndim > 2:
        return F.pad(weight, (0, 0) * (weight.ndim - 2) + (0, weight.shape[1] % 2))
    first = _odd(weight.shape[1])
    return _apart(weight, first) if first else weight


def _odd(depth: int) -> int:
    """The length of the first of two runs where a pair ends early, and 0 where none does."""
    first, *rest = runs(depth)
    return first if rest and first % 2 else 0


def _apart(rows: Tensor, first: int) -> Tensor:
    return torch.cat([rows[..., :first], torch.zeros_like(rows[..., :1]), rows[..., first:]], -1)


def twice_inverted(scale: Tensor) -> Tensor:
    """fl(1 / fl(1 / s)), the first quotient in float64: what is left of a scale that is handed over as its reciprocal."""
    return 1 / (1 / scale.double()).to(torch.float32)


def _handed(scale: Tensor, *, inverted: bool) -> Tensor:
    return twice_inverted(scale) if inverted else scale.to(torch.float32)


def _requantization(
    bias: Tensor | None,
    scales: tuple[Tensor, Tensor],
    y: Grid,
    *,
    rank: int,
    relu: bool,
    apart: bool = False,
    divides: bool = False,
    inverted: bool = True,
    added: Grid | None = None,
) -> Callable[..., Tensor]:
    """From sums to codes; with `apart` one scale after the other, with `divides` by the output's scale and not its inverse.

    With `added` the function takes codes of that grid, too.
    """
    shape = (-1, *[1] * rank)
    sx, sw = scales[0], scales[1].reshape(shape)
    addend = None if bias is None else bias.to(torch.float32).reshape(shape)
    sy, zero, (lo, hi) = _handed(scalar_scale(y), inverted=inverted), scalar_zero(y), stored_range(y)

    def requantize(acc: Tensor, other: Tensor | None = None) -> Tensor:
        on = acc.device
        v = acc.to(torch.float32) * sx.to(on) * sw.to(on) if apart else acc.to(torch.float32) * (sx * sw).to(on)
        if addend is not None:
            v.add_(addend.to(on))
        if other is not None and added is not None:
            away, scale = other.to(torch.float32) - scalar_zero(added), _handed(scalar_scale(added), inverted=inverted).to(on)
            v = v.add_(away * scale) if divides else fma(away, scale, v)
        if relu:
            v.clamp_(min=0)
        v = v.div_(sy.to(on)) if divides else v.mul_((1 / sy).to(on))
        return v.add_(zero).clamp_(lo, hi).round_()

    return requantize


__all__ = [
    "ANATOMIES",
    "SATURATES",
    "conv",
    "conv_add",
    "depthwise",
    "linear",
    "linear_dynamic",
    "paired",
    "reference",
    "twice_inverted",
    "undecided",
]
