"""MLAS's arithmetic on one element, line by line, in Python integers and float32 scalars: the slow twin of the kernels here.

The formulas are those of the modules whose names the functions bear; the notation is that of `kernels.lines`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exactq.kernels.anatomy import Line, Lines
from exactq.kernels.lines import Rows, add_zero, channel_scale, constants, decode, exactly, multiply, rounding
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_scale, scalar_zero, stored_range
from exactq.numerics.scalars import float32, fused, scalar, shown


def requantize(acc: int, factor: np.float32, y: Grid) -> Lines:
    """clamp(rint(fl(fl(acc) · factor)) + zero): conv, gemm, matmul and the global average (RequantizeOutput)."""
    multiplied = multiply(acc, factor)
    return (multiplied, *finish(np.float32(multiplied.value), y))


def finish(steps: np.float32, y: Grid) -> Lines:
    """Steps of the grid -> code: clamped, rounded, then the zero added (`rounding_to_codes`)."""
    zero, (lo, hi) = scalar_zero(y), stored_range(y)
    low, high = lo - zero, hi - zero
    held = np.float32(low) if np.isnan(steps) else min(max(steps, np.float32(low)), np.float32(high))
    if np.isnan(steps):
        fate = f"NaN counts as the lowest: {low}"
    elif held == steps:
        fate = f"{shown(steps)} is within {low}..{high} and stays"
    else:
        fate = f"{shown(steps)} is outside of {low}..{high}: {shown(held)}"
    return (Line("clamp", fate, held, {"low": low, "high": high}), rounding(held), add_zero(int(np.rint(held)), zero))


def round_and_saturate(v: np.float32, y: Grid) -> Lines:
    """sat8(rint(v)) where the zero is already inside of v; 2³¹ and more becomes the lowest code (cvtps2dq)."""
    lo, hi = stored_range(y)
    if np.isnan(v) or v >= np.float32(2**31):
        return (Line("clamp", f"{shown(v)} has no int32, which makes it the lowest code: {lo}", lo, {"low": lo, "high": hi}),)
    whole = rounding(np.float32(max(v, np.float32(-(2**31)))))
    code = min(max(int(whole.value), lo), hi)
    fate = "stays" if code == whole.value else f"becomes {code}"
    return (whole, Line("clamp", f"{whole.value} {fate}: codes are {lo}..{hi}", code, {"low": lo, "high": hi}))


def output_multiplier(x: Grid, w: Grid, y: Grid, channel: int, alpha: float = 1.0) -> Line:
    """fl(fl(sx·sw) / sy) of an output channel; sx is fl(alpha·sx) in a gemm that has one."""
    sx, sw, sy = float32(alpha) * scalar(scalar_scale(x)), channel_scale(w, channel), scalar(scalar_scale(y))
    factor = sx * sw / sy
    text = (
        f"fl(fl(sx · sw) / sy) = fl(fl({shown(sx)} · {shown(sw)}) / {shown(sy)}) = {shown(factor)}, exactly {exactly(factor)}"
    )
    return Line("multiplier", text, factor, {"input_scale": sx, "weight_scale": sw, "output_scale": sy})


def quantize(real: np.float32, y: Grid) -> Lines:
    """rint(clamp(fl(real / scale))) + zero."""
    scale = scalar(scalar_scale(y))
    steps = real / scale
    divided = Line("divide", f"fl({shown(real)} / {shown(scale)}) = {shown(steps)}", steps, {"real": real, "scale": scale})
    return (divided, *finish(steps, y))


def table_entry(code: int, name: str, result: np.float32, x: Grid, y: Grid) -> Lines:
    """An entry of a table of 256: decoded, a function of the real, encoded."""
    decoded = decode(code, x)
    applied = Line(name, f"{name}({shown(decoded.value)}) = {shown(result)} in float32, made once as a table", result)
    return (decoded, applied, *quantize(result, y))


def add(codes: Sequence[int], grids: tuple[Grid, Grid, Grid], *, exchanged: bool) -> Lines:
    """QLinearAdd; `exchanged` is the order in which the compiler fused it where the first operand is a scalar."""
    (sa, za), (sb, zb), (sy, zy) = (constants(grid) for grid in grids)
    (a, b), ra, rb = codes, sa / sy, sb / sy
    last, first = ("a", a, za, ra), ("b", b, zb, rb)
    if exchanged:
        last, first = first, last
    (_, _, z_last, r_last), (_, _, z_first, r_first) = last, first
    fixed = float32(zy) - fused(r_last, float32(z_last), r_first * float32(z_first))
    lines = [
        Line(
            "ratios",
            f"ra = fl({shown(sa)} / {shown(sy)}) = {shown(ra)}, rb = fl({shown(sb)} / {shown(sy)}) = {shown(rb)}",
            ra,
            {"ratio_a": ra, "ratio_b": rb},
        ),
        Line(
            "zeros",
            f"fl({zy} − fma({shown(r_last)}, {z_last}, fl({shown(r_first)} · {z_first}))) = {shown(fixed)}",
            fixed,
            {"zero_a": za, "zero_b": zb, "zero": zy},
        ),
    ]
    v = fixed
    for name, code, _, ratio in (first, last):
        before, v = v, fused(float32(code), ratio, v)
        lines.append(Line(f"add {name}", f"fma({code}, {shown(ratio)}, {shown(before)}) = {shown(v)}", v, {"code": code}))
    return (*lines, *round_and_saturate(v, grids[2]))


def mul(codes: Sequence[int], grids: tuple[Grid, Grid, Grid]) -> Lines:
    """QLinearMul: fl(fl((a − za)·(b − zb) · r) + zy), r = fl(fl(sa·sb) / sy)."""
    (sa, za), (sb, zb), (sy, zy) = (constants(grid) for grid in grids)
    (a, b), r = codes, sa * sb / sy
    whole = (a - za) * (b - zb)
    scaled = float32(whole) * r
    v = scaled + float32(zy)
    text = f"fl(fl(sa · sb) / sy) = fl(fl({shown(sa)} · {shown(sb)}) / {shown(sy)}) = {shown(r)}, exactly {exactly(r)}"
    return (
        Line("product", f"({a} − {za}) · ({b} − {zb}) = {whole}", whole, {"a": a, "b": b, "zero_a": za, "zero_b": zb}),
        Line("multiplier", text, r, {"scale_a": sa, "scale_b": sb, "output_scale": sy}),
        Line("multiply", f"fl({whole} · {shown(r)}) = {shown(scaled)}", scaled, {"multiplier": r}),
        Line("zero", f"fl({shown(scaled)} + {zy}) = {shown(v)}; the zero is inside the rounding", v, {"zero": zy}),
        *round_and_saturate(v, grids[2]),
    )


def global_mean(codes: Sequence[int], rows: Rows, x: Grid, y: Grid) -> Lines:
    """QLinearGlobalAveragePool: the sum of all pixels less their zeros, times fl(sx / fl(sy·n))."""
    (sx, zx), sy, count = constants(x), scalar(scalar_scale(y)), len(codes)
    acc = sum(codes) - zx * count
    divisor = sy * float32(count)
    factor = sx / divisor
    text = f"fl(sx / fl(sy · n)) = fl({shown(sx)} / fl({shown(sy)} · {count})) = {shown(factor)}, exactly {exactly(factor)}"
    return (
        Line("sum", f"Σ x − n · zx = {sum(codes)} − {count} · {zx} = {acc}", acc, {"pixels": count, "zero": zx}, rows),
        Line("multiplier", text, factor, {"input_scale": sx, "output_scale": sy}),
        *requantize(acc, factor, y),
    )


def window_mean(codes: Sequence[int], count: int, rows: Rows, x: Grid, y: Grid) -> Lines:
    """QLinearAveragePool: reals summed in the order of the window, divided by the count and by sy, all in float32."""
    (sx, zx), (sy, zy) = constants(x), constants(y)
    total = np.float32(0)
    for code in codes:
        total = total + float32(code - zx) * sx
    mean = total / float32(count)
    steps = mean / sy
    v = steps + float32(zy)
    return (
        Line("sum", f"Σ fl(sx · (x − {zx})) in the window's order = {shown(total)}", total, {"scale": sx, "zero": zx}, rows),
        Line("mean", f"fl({shown(total)} / {count}) = {shown(mean)}", mean, {"count": count}),
        Line("divide", f"fl({shown(mean)} / {shown(sy)}) = {shown(steps)}", steps, {"scale": sy}),
        Line("zero", f"fl({shown(steps)} + {zy}) = {shown(v)}; the zero is inside the rounding", v, {"zero": zy}),
        *round_and_saturate(v, y),
    )
