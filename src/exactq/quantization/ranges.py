"""Ranges -> grids: s = (hi − lo) / (highest code − lowest code), z = lowest code − lo/s, rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from exactq.errors import DataError
from exactq.numerics.formats import Format, Grid

SMALLEST = 2.0**-60
"""No scale is smaller: the product of two is a normal float32 still, which no runtime flushes to zero."""
_WIDEST = 2.0**126


def grid(lo: float | Tensor, hi: float | Tensor, fmt: Format, *, symmetric: bool = False) -> Grid:
    """The grid that spans lo..hi: zero has a code, exactly, and every real of the range lies within half a step of one.

    `lo` and `hi` are numbers, or tensors of one shape for a grid each. A range without zero is widened to it. Asymmetric: the
    float32 arithmetic of ONNX DynamicQuantizeLinear, s = fl(fl(hi − lo)/codes), z = rint(lowest − fl(lo/s)). Symmetric: zero in
    the middle (int8: 0, uint8: 128), s = fl(max(−lo, hi)/n) with n the codes on the shorter side, so both ends are reached.

    (0, 0) gives scale 1, as DynamicQuantizeLinear does; narrower ranges than `SMALLEST` times the codes give `SMALLEST`.
    Formats beyond 16 bits hold more codes than float32 can tell apart; they are refused. Raises `DataError` for ends that
    are not finite, beyond ±2^126, or in the wrong order.

    >>> from exactq.numerics.formats import INT8, UINT8
    >>> grid(-1.0, 3.0, UINT8), grid(-1.0, 3.0, INT8.narrow, symmetric=True)
    (Grid(uint8, scale=0.0156863, zero=64), Grid(int8, scale=0.023622, zero=0))
    """
    if fmt.bits > 16:
        raise DataError(f"a range has no grid in {fmt.name}: float32 scales tell at most 16-bit codes apart")
    lo, hi = torch.as_tensor(lo, dtype=torch.float32), torch.as_tensor(hi, dtype=torch.float32)
    wrong = ~((-_WIDEST <= lo) & (lo <= hi) & (hi <= _WIDEST))  # NaN fails every comparison
    if bool(wrong.any()):
        low, high = (end.broadcast_to(wrong.shape)[wrong][0].item() for end in (lo, hi))
        raise DataError(f"{low}..{high} is no range: it needs two numbers within ±2^126, the lower first")
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    if symmetric:
        scale = torch.maximum(-lo, hi) / reach(fmt)
        zero = torch.full_like(scale, middle(fmt))
    else:
        scale = (hi - lo) / (fmt.hi - fmt.lo)
    scale = torch.where(lo == hi, 1.0, scale.clamp(min=SMALLEST))
    if not symmetric:
        zero = torch.round((fmt.lo - (lo / scale).double()).clamp(fmt.lo, fmt.hi))
    return Grid(fmt, scale, zero.to(torch.int32))


def middle(fmt: Format) -> int:
    """The code that stands for zero on a symmetric grid: 0 if signed, else half of the codes (128 for uint8)."""
    return (fmt.lo + fmt.hi + 1) // 2


def reach(fmt: Format) -> int:
    """How many codes a symmetric grid has on the shorter side of zero: 127 for int8, narrow or not, and for uint8.

    >>> from exactq.numerics.formats import INT8, UINT4
    >>> reach(INT8), reach(UINT4)
    (127, 7)
    """
    return min(fmt.hi - middle(fmt), middle(fmt) - fmt.lo)
