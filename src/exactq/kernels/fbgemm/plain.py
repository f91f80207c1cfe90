"""FBGEMM's way from a sum to a code, line by line, in Python integers and float32 scalars: the slow twin of its kernels."""

from __future__ import annotations

import numpy as np

from exactq.kernels.anatomy import Line, Lines
from exactq.kernels.lines import channel_scale, constants, exactly, multiply, pack
from exactq.numerics.formats import Grid
from exactq.numerics.scalars import float32, fused, shown


def requantize(acc: int, bias: np.float32 | None, x: Grid, w: Grid, y: Grid, channel: int, *, relu: bool) -> Lines:
    """fl(v · fl(s / sy)), s = fl(sx·sw), packed; v is fl(acc), with fl(b / s) added or b · fl(1/s) within one rounding."""
    (sx, _), (sy, _), sw = constants(x), constants(y), channel_scale(w, channel)
    s = sx * sw
    factor = s / sy
    text = (
        f"fl(fl(sx · sw) / sy) = fl(fl({shown(sx)} · {shown(sw)}) / {shown(sy)}) = {shown(factor)}, exactly {exactly(factor)}"
    )
    multiplier = Line("multiplier", text, factor, {"input_scale": sx, "weight_scale": sw, "output_scale": sy})
    if bias is None:
        multiplied = multiply(acc, factor)
        return (multiplier, multiplied, *pack(np.float32(multiplied.value), y, relu=relu))
    rounded = float32(acc)
    if w.scale.ndim:
        addend = bias / s
        v = rounded + addend
        told = f"fl(fl({acc}) + fl({shown(bias)} / fl(sx · sw))) = fl({shown(rounded)} + {shown(addend)}) = {shown(v)}"
    else:
        inverse = np.float32(1) / s
        v = fused(bias, inverse, rounded)
        told = f"fma({shown(bias)}, fl(1 / fl(sx · sw)), fl({acc})) = fma({shown(bias)}, {shown(inverse)}, {shown(rounded)}) = "
        told += f"{shown(v)}: one scale for all weights, one rounding"
    steps = v * factor
    return (
        Line("add bias", told, v, {"accumulator": acc, "rounded": rounded, "bias": bias, "scale": s}),
        multiplier,
        Line("multiply", f"fl({shown(v)} · {shown(factor)}) = {shown(steps)}", steps, {"multiplier": factor}),
        *pack(steps, y, relu=relu),
    )
