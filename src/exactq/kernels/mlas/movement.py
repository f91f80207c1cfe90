"""Operators that move codes and compute nothing; the grid stays. Any storage in, float32 holding integers out only by `pad`."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from exactq.kernels.accumulators import Kernel
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_zero


def pad(x: Grid, *, padding: Sequence[int]) -> Kernel:
    """The codes with a border of the zero code, which stands for 0; all begins before all ends, for every axis, as in ONNX."""
    zero, rank = scalar_zero(x), len(padding) // 2
    sides = tuple(n for side in zip(padding[:rank][::-1], padding[rank:][::-1], strict=True) for n in side)
    return lambda codes: F.pad(codes, sides, value=zero)


def narrow(*, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int] | None = None) -> Kernel:
    """The part starts..ends of some axes, in steps (ONNX Slice with positive steps); ends beyond the axis are clipped."""
    parts = dict(zip(axes, map(slice, starts, ends, steps or [1] * len(axes)), strict=True))

    def apply(codes: Tensor) -> Tensor:
        at = {axis % codes.ndim: part for axis, part in parts.items()}
        return codes[tuple(at.get(axis, slice(None)) for axis in range(codes.ndim))]

    return apply


def transpose(*, order: Sequence[int]) -> Kernel:
    """The codes with their axes in this order."""
    return lambda codes: codes.permute(*order)


def reshape(*, shape: Sequence[int]) -> Kernel:
    """The codes in this shape; one size may be −1."""
    return lambda codes: codes.reshape(*shape)
