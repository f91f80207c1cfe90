"""The lines that the arithmetic of every library is told in: constants, float32 factors, roundings, and the packing of x86.

fl(·) is one rounding to float32, rint(·) goes to the nearest integer, ties to even. Each library's `plain` module puts them in
its own order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exactq.kernels.anatomy import Line, Lines
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_scale, scalar_zero, stored_range
from exactq.numerics.scalars import Scalar, float32, scalar, shown

Constants = tuple[np.float32, int]
"""Scale and zero of a grid that has one of each."""

Rows = tuple[dict[str, Any], ...]
"""The terms of a line, a row each."""


def constants(grid: Grid) -> Constants:
    """Scale and zero of a per-tensor grid as numbers."""
    return scalar(scalar_scale(grid)), scalar_zero(grid)


def channel_scale(w: Grid, channel: int) -> np.float32:
    """The scale of an output channel, or the one of all."""
    return scalar(w.scale.flatten()[channel if w.scale.numel() > 1 else 0])


def exactly(value: np.float32) -> str:
    """A float32 as integer · power of two.

    >>> exactly(np.float32(0.1)), exactly(np.float32(6))
    ('13421773 · 2^-27', '3 · 2^1')
    """
    numerator, denominator = float(value).as_integer_ratio() if np.isfinite(value) else (0, 1)
    down = numerator & -numerator if denominator == 1 and numerator else 1
    return f"{numerator // down} · 2^{down.bit_length() - denominator.bit_length()}" if np.isfinite(value) else str(value)


def multiply(acc: int, factor: np.float32) -> Line:
    """fl(fl(acc) · factor), and what float32 drops of a large sum."""
    rounded = float32(acc)
    steps = rounded * factor
    lost = "" if int(rounded) == acc else f"; float32 has 24 bits, so fl({acc}) = {int(rounded)}"
    text = f"fl(fl({acc}) · {shown(factor)}) = {shown(steps)}{lost}"
    return Line("multiply", text, steps, {"accumulator": acc, "rounded": rounded, "multiplier": factor})


def rounding(v: float | np.float32) -> Line:
    """rint(v), and whether it was a tie."""
    whole = int(np.rint(v))
    tie = abs(float(v) - whole) == 0.5
    text = f"rint({shown(v)}) = {whole}{', a tie: to the even neighbour' if tie else ''}"
    return Line("round", text, whole, {"tie": tie})


def decode(code: int, x: Grid) -> Line:
    """fl(fl(code − zero) · scale)."""
    scale, zero = constants(x)
    real = float32(code - zero) * scale
    return Line("decode", f"fl(({code} − {zero}) · {shown(scale)}) = {shown(real)}", real, {"code": code, "scale": scale})


def clamp(steps: float | np.float32, low: int, high: int) -> Line:
    """Steps held within low..high."""
    if low <= steps <= high:
        return Line("clamp", f"{shown(steps)} is within {low}..{high} and stays", as_scalar(steps), {"low": low, "high": high})
    held = low if steps < low else high
    text = f"{shown(steps)} is outside of {low}..{high}: {held}"
    return Line("clamp", text, held, {"low": low, "high": high})


def add_zero(whole: int, zero: int) -> Line:
    """The code: an integer of steps and the zero."""
    return Line("zero", f"{whole} + {zero} = {whole + zero}", whole + zero, {"zero": zero})


def pack(steps: float | np.float32, y: Grid, *, relu: bool = False) -> Lines:
    """clamp(sat16(sat16(cvt(steps))) + zero): rounded, packed, then the zero added (`packing_to_codes`).

    CVTPS2DQ has no int32 for 2³¹ and more, nor for NaN, and makes −2³¹ of them, which is the lowest code.
    """
    zero, (lo, hi) = scalar_zero(y), stored_range(y)
    lo = zero if relu else lo
    ends = {"low": lo, "high": hi}
    if not steps < 2.0**31:
        return (Line("clamp", f"{shown(steps)} has no int32, which makes it the lowest code: {lo}", lo, ends),)
    rounded = rounding(max(steps, -(2.0**31)))
    whole = int(rounded.value)
    code = min(max(whole + zero, lo), hi)
    end = f"{lo}, the zero: relu" if relu and code == lo != whole + zero else str(code)
    fate = "stays" if code == whole + zero else f"becomes {end}"
    return (
        rounded,
        add_zero(whole, zero),
        Line("clamp", f"{whole + zero} {fate}: codes are {lo}..{hi}", code, ends),
    )


def as_scalar(number: float | np.float32) -> Scalar:
    """A number as a line's value: a Python float, of which a float64 kernel is made, as the nearest float32."""
    return number if isinstance(number, np.float32) else np.float32(number)
