"""oneDNN's way from a sum to a code, line by line, in Python integers and float32 scalars: the slow twin of its kernels."""

from __future__ import annotations

import numpy as np

from exactq.kernels.anatomy import Line, Lines
from exactq.kernels.lines import channel_scale, clamp, constants, exactly, rounding
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import stored_range
from exactq.numerics.scalars import float32, shown

ONE = np.float32(1)


def twice_inverted(scale: np.float32) -> np.float32:
    """fl(1 / fl(1 / s)): what is left of a scale that is handed over as its reciprocal."""
    return ONE / (ONE / scale)


def requantize(
    acc: int,
    bias: np.float32 | None,
    x: Grid,
    w: Grid,
    y: Grid,
    channel: int,
    *,
    relu: bool,
    inverted: bool,
    apart: bool,
    divides: bool,
) -> Lines:
    """The sum times both scales, plus the bias, over the output's scale, plus the zero; then clamped and rounded.

    `inverted` weight scales are reciprocals of reciprocals, too; with `apart` one scale is multiplied after the other, with
    `divides` the reference kernel divides by the output's.
    """
    (sx, _), (sy, zy), sw = constants(x), constants(y), channel_scale(w, channel)
    rx, ry = twice_inverted(sx), twice_inverted(sy)
    rw = twice_inverted(sw) if inverted else sw
    rounded, both = float32(acc), rx * rw
    v = rounded * rx * rw if apart else rounded * both
    name = "r(sw)" if inverted else "sw"
    told = f"r(s) = fl(1 / fl(1 / s)): r(sx) = {shown(rx)}, {name} = {shown(rw)}"
    product = f"fl(r(sx) · {name}) = {shown(both)}, exactly {exactly(both)}"
    lines = [
        Line(
            "multiplier",
            f"{told}, one after the other" if apart else f"{told}; {product}",
            both,
            {"input_scale": rx, "weight_scale": rw, "output_scale": ry},
        ),
        Line(
            "multiply",
            f"fl(fl(fl({acc}) · {shown(rx)}) · {shown(rw)}) = {shown(v)}"
            if apart
            else f"fl(fl({acc}) · {shown(both)}) = {shown(v)}",
            v,
            {"accumulator": acc, "rounded": rounded, "multiplier": both},
        ),
    ]
    if bias is not None:
        before, v = v, v + bias
        lines.append(Line("add bias", f"fl({shown(before)} + {shown(bias)}) = {shown(v)}", v, {"bias": bias}))
    if relu:
        before, v = v, max(v, np.float32(0))
        lines.append(Line("relu", f"max({shown(before)}, 0) = {shown(v)}", v))
    before = v
    if divides:
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
