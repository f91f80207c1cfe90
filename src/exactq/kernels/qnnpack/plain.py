"""QNNPACK's arithmetic on one element, line by line, in Python integers and float32 scalars: the slow twin of its kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from exactq.kernels.anatomy import Element, Line, Lines
from exactq.kernels.aten.plain import inverse, window_sum
from exactq.kernels.lines import as_scalar, channel_scale, constants, exactly, multiply, pack
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import stored_range
from exactq.numerics.scalars import float32, shown


def requantize(acc: int, bias: np.float32 | None, x: Grid, w: Grid, y: Grid, channel: int, *, relu: bool, once: bool) -> Lines:
    """fl(fl(acc) · m), m = fl(fl(sw·sx) · fl(1/sy)), packed; with `once` acc · m is not rounded before it is an integer.

    A `bias` is a real one, which QNNPACK does not have: fl(b / fl(sx·sw)) is added to fl(acc).
    """
    (sx, _), (sy, _), sw = constants(x), constants(y), channel_scale(w, channel)
    factor = sw * sx * inverse(sy)
    text = f"fl(fl(sw · sx) · fl(1 / sy)) = fl(fl({shown(sw)} · {shown(sx)}) · fl(1 / {shown(sy)})) = {shown(factor)}"
    multiplier = Line(
        "multiplier",
        f"{text}, exactly {exactly(factor)}",
        factor,
        {"input_scale": sx, "weight_scale": sw, "output_scale": sy},
    )
    if bias is None and not once:
        multiplied = multiply(acc, factor)
        return (multiplier, multiplied, *pack(np.float32(multiplied.value), y, relu=relu))
    lines, v = [], float(acc) if once else float32(acc)
    if bias is not None:
        steps_of_bias = bias / (sx * sw)
        v = v + float(steps_of_bias) if once else v + steps_of_bias
        told = f"{acc} + fl({shown(bias)} / fl(sx · sw)) = {acc} + {shown(steps_of_bias)} = {shown(v)}"
        lines.append(Line("add bias", told, as_scalar(v), {"bias": bias}))
    steps = v * float(factor) if once else v * factor
    told = f"{shown(v)} · {shown(factor)} = {steps:.12g}" + (
        ", not rounded to float32 by this kernel of 3×3×3 pixels" if once else " in float32"
    )
    return (
        *lines,
        multiplier,
        Line("multiply", told, as_scalar(steps), {"multiplier": factor}),
        *pack(steps, y, relu=relu),
    )


def add(codes: Sequence[int], grids: tuple[Grid, Grid, Grid], *, relu: bool) -> Lines:
    """Fixed point: multipliers of 22 bits, one sum in int32, shifted down and rounded half away from zero."""
    (sa, za), (sb, zb), (sy, zy) = (constants(grid) for grid in grids)
    lo, hi = stored_range(grids[2])
    (a, b), ratios = codes, (sa / sy, sb / sy)
    shift = 21 - (math.frexp(float(max(ratios)))[1] - 1)
    ma, mb = (round(float(r) * 2.0**shift) for r in ratios)
    offset = ma * za + mb * zb
    exact = ma * a + mb * b - offset
    acc = (exact + 2**31) % 2**32 - 2**31
    steps, rest = divmod(acc, 2**shift)
    steps += rest * 2 > 2**shift or (rest * 2 == 2**shift and acc > 0)
    held = min(max(steps, -(2**15)), 2**15 - 1)
    low = zy if relu else lo
    code = min(max(held + zy, low), hi)
    fate = "stays" if code == held + zy else f"becomes {code}"
    return (
        Line(
            "multipliers",
            f"rint(fl(sa / sy) · 2^{shift}) = {ma}, rint(fl(sb / sy) · 2^{shift}) = {mb}",
            ma,
            {"multiplier_a": ma, "multiplier_b": mb, "shift": shift},
        ),
        Line(
            "sum",
            f"{ma} · {a} + {mb} · {b} − ({ma} · {za} + {mb} · {zb}) = {exact}"
            + ("" if acc == exact else f", which wraps in int32 to {acc}"),
            acc,
            {"exact": exact, "a": a, "b": b, "zero_a": za, "zero_b": zb},
        ),
        Line("round", f"{acc} / 2^{shift} = {acc / 2**shift:.7g}, half away from zero: {steps}", steps, {"shift": shift}),
        Line("zero", f"{held} + {zy} = {held + zy}", held + zy, {"zero": zy}),
        Line("clamp", f"{held + zy} {fate}: codes are {low}..{hi}", code, {"low": low, "high": hi}),
    )


def mean(e: Element, count: int, x: Grid) -> Lines:
    """fl(fl(S) · fl(s / fl(s·n))), packed."""
    scale, zero = constants(x)
    total = window_sum(e, zero)
    divisor = scale * float32(count)
    factor = scale / divisor
    text = f"fl(s / fl(s · n)) = fl({shown(scale)} / fl({shown(scale)} · {count})) = {shown(factor)}, exactly {exactly(factor)}"
    multiplied = multiply(int(total.value), factor)
    return (
        total,
        Line("multiplier", text, factor, {"scale": scale, "count": count}),
        multiplied,
        *pack(np.float32(multiplied.value), x),
    )
