"""The int32 accumulators of integer kernels, from exact sums: what saturating pairs add, wraparound, and operands' shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exactq.errors import ModelError
from exactq.kernels import sums
from exactq.numerics.formats import Grid, expand
from exactq.numerics.requantization import scalar_zero
from exactq.numerics.rounding import wrap_int32

Kernel = Callable[[Tensor], Tensor]
"""Codes in any storage -> codes as float32 holding integers."""


@dataclass(frozen=True, eq=False)
class Accumulator:
    """Raw codes -> the runtime's int32 sums, in its parts: exact sums of centred codes, and what saturating pairs add to them.

    `excess` is a function of raw codes, None where no pair can saturate. `wraps`: some input takes a sum out of int32.
    """

    exact: sums.Sums
    excess: Kernel | None
    zero: int
    wraps: bool

    def __call__(self, codes: Tensor) -> Tensor:
        """The sums, float32 or float64 holding int32 values."""
        centred = codes.to(torch.float32)
        acc = self.exact(centred - self.zero if self.zero else centred)
        if self.excess is not None:
            acc = acc.double() + self.excess(codes)
        return wrap_int32(acc.double()) if self.wraps else acc


@dataclass(frozen=True, eq=False)
class Layer:
    """The kernel of a layer with weights, in its parts: raw codes -> int32 sums -> codes.

    A kernel that adds codes behind the sums takes them second, and so does its `finish`.
    """

    accumulate: Accumulator
    finish: Callable[..., Tensor]

    def __call__(self, codes: Tensor, *added: Tensor) -> Tensor:
        """The codes of the result, float32 holding integers."""
        return self.finish(self.accumulate(codes), *added)


def convolution(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    x: Grid,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    excess: Kernel | None = None,
) -> Accumulator:
    """The int32 sums of a convolution of raw codes of `x` with centred weight codes, int32 `bias` codes included.

    `padding` has two numbers an axis, all begins before all ends; `excess` is what saturation adds, a function of raw codes.
    """
    zero = scalar_zero(x)
    lo, hi = x.format.lo - zero, x.format.hi - zero
    exact = sums.convolution_sums(weight, bias, lo=lo, hi=hi, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return Accumulator(exact, excess, zero, wraps(weight, bias, lo, hi))


def matrix(weight: Tensor, bias: Tensor | None = None, *, x: Grid, excess: Kernel | None = None) -> Accumulator:
    """The int32 sums of raw codes (…, in) of `x` with centred weight codes (out, in), int32 `bias` codes included."""
    zero = scalar_zero(x)
    lo, hi = x.format.lo - zero, x.format.hi - zero
    return Accumulator(sums.matrix_sums(weight, bias, lo=lo, hi=hi), excess, zero, wraps(weight, bias, lo, hi))


def wraps(centred: Tensor, bias: Tensor | None, lo: int, hi: int) -> bool:
    """Whether some input takes a sum, with what saturation may add to it, out of int32."""
    return sums.largest(centred, bias, lo, hi) + centred[0].numel() * 2**15 >= 2**31


def centred(weight: Tensor, w: Grid) -> Tensor:
    """Weight codes without their zeros, int32."""
    return weight.int() - (expand(w.zero, weight.shape) if w.zero.ndim else w.zero).to(weight.device)


def channel_scales(w: Grid, channels: int) -> Tensor:
    """The scale of each output channel (channels,), for a grid per tensor or per channel along the first axis."""
    if w.scale.numel() not in (1, channels) or w.scale.numel() != (w.scale.shape[0] if w.scale.ndim else 1):
        raise ModelError(f"weights take one scale, or one for each of {channels} output channels, not {tuple(w.scale.shape)}")
    return expand(w.scale.flatten(), (channels,)) if w.scale.numel() == channels else w.scale.flatten().expand(channels)


def per_axis(numbers: Sequence[int], rank: int) -> tuple[int, ...]:
    """One number for each of `rank` axes, from one for all or one each."""
    if len(numbers) not in (1, rank):
        raise ModelError(f"{rank} kernel axes take 1 or {rank} numbers, not {len(numbers)}: {tuple(numbers)}")
    return tuple(numbers) * (rank if len(numbers) == 1 else 1)
