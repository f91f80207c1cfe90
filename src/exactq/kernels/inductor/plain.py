"""The compiled loops' arithmetic on one element, line by line, in Python integers and float32 scalars: the kernels' twin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from exactq.kernels.anatomy import Element, Line, Lines
from exactq.kernels.aten.plain import inverse, window_sum
from exactq.kernels.lines import add_zero, constants, decode, rounding
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_zero, stored_range
from exactq.numerics.scalars import float32, shown

BEYOND = 2.0**24
"""From here on steps are far outside of all codes, and float32 has no half steps."""


def encode(real: np.float32, y: Grid) -> Lines:
    """quantized_decomposed.quantize_per_tensor: clamp(rint(fl(x · fl(1/s))) + z); NaN becomes the lowest code."""
    scale, _ = constants(y)
    factor = inverse(scale)
    steps = real * factor
    text = f"fl({shown(real)} · fl(1 / {shown(scale)})) = {shown(steps)}"
    return (Line("divide", text, steps, {"real": real, "inverse": factor}), *_codes(steps, y))


def pair(codes: tuple[int, int], grids: tuple[Grid, Grid, Grid], name: str, *, relu: bool) -> Lines:
    """`add` or `mul` of two decoded codes, encoded."""
    first, second = (decode(code, grid) for code, grid in zip(codes, grids, strict=False))
    left, right = (np.float32(line.value) for line in (first, second))
    total = left + right if name == "add" else left * right
    sign = "+" if name == "add" else "·"
    lines = [first, second, Line(name, f"fl({shown(left)} {sign} {shown(right)}) = {shown(total)}", total)]
    if relu:
        before, total = total, max(total, np.float32(0))
        lines.append(Line("relu", f"max({shown(before)}, 0) = {shown(total)}", total))
    return (*lines, *encode(total, grids[2]))


def applied(code: int, name: str, f: Callable[[np.float32], np.float32], x: Grid, y: Grid) -> Lines:
    """A function of one code: decoded, applied, encoded."""
    before = decode(code, x)
    real = np.float32(before.value)
    result = f(real)
    return (before, Line(name, f"{name}({shown(real)}) = {shown(result)} in float32", result), *encode(result, y))


def average(e: Element, count: int, x: Grid) -> Lines:
    """The mean of what is read: clamp(rint(fl(S / count)) + z), S = Σ (x − z)."""
    total = window_sum(e, scalar_zero(x))
    steps = float32(int(total.value)) / float32(count)
    text = f"fl(fl({total.value}) / {count}) = {shown(steps)}"
    return (total, Line("divide", text, steps, {"count": count}), *_codes(steps, x))


def _codes(steps: np.float32, y: Grid) -> Lines:
    """Steps rounded, the zero added behind the rounding, and held on the grid."""
    zero, (lo, hi) = scalar_zero(y), stored_range(y)
    ends = {"low": lo, "high": hi}
    if not abs(steps) < BEYOND:
        code = hi if steps > 0 else lo
        return (Line("clamp", f"{shown(steps)} is outside of {lo - zero}..{hi - zero}: code {code}", code, ends),)
    rounded = rounding(steps)
    made = add_zero(int(rounded.value), zero)
    code = min(max(int(made.value), lo), hi)
    fate = "stays" if code == made.value else f"becomes {code}"
    return (rounded, made, Line("clamp", f"{made.value} {fate}: codes are {lo}..{hi}", code, ends))
