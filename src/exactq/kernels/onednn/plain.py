"""oneDNN's way from a sum to a code, line by line, in Python integers and float32 scalars: the slow twin of its kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exactq.kernels.anatomy import Line, Lines
from exactq.kernels.lines import channel_scale, clamp, constants, exactly, rounding
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import stored_range
from exactq.numerics.scalars import float32, fused, shown

ONE = np.float32(1)


def twice_inverted(scale: np.float32) -> np.float32:
    """fl(1 / fl(1 / s)): what is left of a scale that is handed over as its reciprocal."""
    return ONE / (ONE / scale)


@dataclass(frozen=True)
class Handed:
    """Which scales are handed over as their reciprocals: those of codes (`x`, the output, what is added), and of weights."""

    x: bool
    w: bool


@dataclass(frozen=True)
class Way:
    """`apart`: one scale is multiplied after the other. `divides`: by the output's scale, as the reference kernel."""

    apart: bool
    divides: bool
    relu: bool


def requantize(
    acc: int,
    bias: np.float32 | None,
    added: tuple[int, Grid] | None,
    x: Grid,
    w: Grid,
    y: Grid,
    channel: int,
    handed: Handed,
    way: Way,
) -> Lines:
    """The sum times both scales, the bias and what is `added`, over the output's scale, plus the zero; clamped and rounded."""
    (sx, _), (sy, zy), sw = constants(x), constants(y), channel_scale(w, channel)
    rx, ry = (twice_inverted(s) if handed.x else s for s in (sx, sy))
    rw = twice_inverted(sw) if handed.w else sw
    rounded, both = float32(acc), rx * rw
    v = rounded * rx * rw if way.apart else rounded * both
    names = ("r(sx)" if handed.x else "sx", "r(sw)" if handed.w else "sw")
    told = f"{names[0]} = {shown(rx)}, {names[1]} = {shown(rw)}"
    told = f"r(s) = fl(1 / fl(1 / s)): {told}" if handed.x else told
    product = f"fl({names[0]} · {names[1]}) = {shown(both)}, exactly {exactly(both)}"
    lines = [
        Line(
            "multiplier",
            f"{told}, one after the other" if way.apart else f"{told}; {product}",
            both,
            {"input_scale": rx, "weight_scale": rw, "output_scale": ry},
        ),
        Line(
            "multiply",
            f"fl(fl(fl({acc}) · {shown(rx)}) · {shown(rw)}) = {shown(v)}"
            if way.apart
            else f"fl(fl({acc}) · {shown(both)}) = {shown(v)}",
            v,
            {"accumulator": acc, "rounded": rounded, "multiplier": both},
        ),
    ]
    if bias is not None:
        before, v = v, v + bias
        lines.append(Line("add bias", f"fl({shown(before)} + {shown(bias)}) = {shown(v)}", v, {"bias": bias}))
    if added is not None:
        lines.append(_join(v, *added, handed, way))
        v = np.float32(lines[-1].value)
    if way.relu:
        before, v = v, max(v, np.float32(0))
        lines.append(Line("relu", f"max({shown(before)}, 0) = {shown(v)}", v))
    before = v
    if way.divides:
        v = v / ry
        lines.append(Line("divide", f"fl({shown(before)} / {shown(ry)}) = {shown(v)}", v, {"scale": ry}))
    else:
        inverse = ONE / ry
        v = v * inverse
        lines.append(Line("divide", f"fl({shown(before)} · fl(1 / {shown(ry)})) = {shown(v)}", v, {"inverse": inverse}))
    before, v = v, v + float32(zy)
    lines.append(Line("zero", f"fl({shown(before)} + {zy}) = {shown(v)}; the zero is inside the rounding", v, {"zero": zy}))
    held = clamp(v, *stored_range(y))
    return (*lines, held, rounding(np.float32(held.value)))


def _join(v: np.float32, code: int, grid: Grid, handed: Handed, way: Way) -> Line:
    """v and the real of the code that is added: in one rounding, but the reference kernel rounds the product by itself."""
    scale, zero = constants(grid)
    r, away = twice_inverted(scale) if handed.x else scale, float32(code - zero)
    name = "r(sa)" if handed.x else "sa"
    total = v + away * r if way.divides else fused(away, r, v)
    parts = f"{shown(v)} + fl(({code} − {zero}) · {shown(r)})" if way.divides else f"{code} − {zero}, {shown(r)}, {shown(v)}"
    text = f"{name} = {shown(r)}: {'fl' if way.divides else 'fma'}({parts}) = {shown(total)}"
    return Line("add codes", text, total, {"code": code, "scale": r, "zero": zero})
