"""ATen's arithmetic on one element, line by line, in Python integers and float32 scalars: the slow twin of the kernels here.

`body` is what a vector loop makes, otherwise it is the scalar loop behind it: where an element lies in memory decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exactq.kernels.anatomy import Element, Line, Lines, pixel_rows
from exactq.kernels.lines import add_zero, clamp, constants, decode, exactly, pack, rounding
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_zero, stored_range
from exactq.numerics.scalars import float32, fused, shown

ONE = np.float32(1)

Grids = tuple[Grid, Grid, Grid]


def inverse(scale: np.float32) -> np.float32:
    """fl(1 / s)."""
    return ONE / scale


def where(index: int, size: int, block: int, what: str, *, body: bool) -> Line:
    """Which loop makes the element: the vectors take whole blocks, the rest is left over."""
    kind = "the vector loop makes it" if body else "it is left over and made by itself"
    text = f"{what} {index} of {size}, vectors take {block} a turn: {kind}"
    return Line("loop", text, index, {"of": size, "block": block, "vector": body})


def quantize(real: np.float32, y: Grid) -> Lines:
    """torch.quantize_per_tensor: rint(clamp(fma(x, fl(1/s), z))); NaN becomes the highest code."""
    (scale, zero), (lo, hi) = constants(y), stored_range(y)
    factor = inverse(scale)
    steps = fused(real, factor, float32(zero))
    if np.isnan(steps):
        return (Line("clamp", f"NaN counts as the highest: {hi}", hi, {"low": lo, "high": hi}),)
    text = f"fma({shown(real)}, fl(1 / {shown(scale)}), {zero}) = {shown(steps)}; the zero is inside the one rounding"
    held = clamp(steps, lo, hi)
    return (Line("divide", text, steps, {"real": real, "inverse": factor, "zero": zero}), held, _rounded(held))


def encode(real: np.float32, y: Grid, *, body: bool) -> Lines:
    """What a loop makes of its reals: the vectors round before the zero is added, the scalars behind it."""
    (scale, zero), (lo, hi) = constants(y), stored_range(y)
    factor = inverse(scale)
    steps = real * factor
    divided = Line(
        "divide",
        f"fl({shown(real)} · fl(1 / {shown(scale)})) = {shown(steps)}",
        steps,
        {"real": real, "inverse": factor},
    )
    ends = {"low": lo, "high": hi}
    if not body:
        v = steps + float32(zero)
        text = f"fl({shown(steps)} + {zero}) = {shown(v)}; the zero is inside the rounding"
        held = clamp(v, lo, hi)
        return (divided, Line("zero", text, v, {"zero": zero}), held, _rounded(held))
    if zero >= 128 and steps >= np.float32(2**31 - 128):
        text = f"{shown(steps)} + {zero} wraps around in int32, which makes it the lowest code: {lo}"
        return (divided, Line("clamp", text, lo, ends))
    if abs(steps) >= 2.0**31:
        code = hi if steps > 0 else lo
        return (divided, Line("clamp", f"{shown(steps)} is outside of {lo - zero}..{hi - zero}: code {code}", code, ends))
    rounded = rounding(steps)
    whole = int(rounded.value)
    code = min(max(whole + zero, lo), hi)
    fate = "stays" if code == whole + zero else f"becomes {code}"
    last = Line("clamp", f"{whole + zero} {fate}: codes are {lo}..{hi}", code, ends)
    return (divided, rounded, add_zero(whole, zero), last)


def _rounded(held: Line) -> Line:
    return rounding(np.float32(held.value))


def decode_vector(code: int, x: Grid) -> Line:
    """A vector loop's real: fma(s, q, fl(s · −z))."""
    scale, zero = constants(x)
    offset = scale * np.float32(-zero)
    real = fused(float32(code), scale, offset)
    text = f"fma({code}, {shown(scale)}, fl(−{zero} · {shown(scale)})) = {shown(real)}"
    return Line("decode", text, real, {"code": code, "scale": scale})


def decoded(code: int, x: Grid, *, body: bool) -> Line:
    """A code's real as the loop decodes it."""
    return decode_vector(code, x) if body else decode(code, x)


def add(codes: Sequence[int], grids: Grids, *, relu: bool, body: bool) -> Lines:
    """quantized::add: the sum of both reals, encoded."""
    first, second = (decoded(code, grid, body=body) for code, grid in zip(codes, grids, strict=False))
    left, right = (np.float32(line.value) for line in (first, second))
    total = left + right
    lines = [first, second, Line("add", f"fl({shown(left)} + {shown(right)}) = {shown(total)}", total)]
    if relu:
        before, total = total, max(total, np.float32(0))
        lines.append(Line("relu", f"max({shown(before)}, 0) = {shown(total)}", total))
    return (*lines, *encode(total, grids[2], body=body))


def mul(codes: Sequence[int], grids: Grids, *, relu: bool, body: bool) -> Lines:
    """quantized::mul: fl((a − za)·(b − zb) · m), m = fl(fl(sa·sb) · fl(1/s)); vectors convert to int32, scalars to int64."""
    (sa, za), (sb, zb), (sy, zy) = (constants(grid) for grid in grids)
    (a, b), factor = codes, sa * sb * inverse(sy)
    whole = (a - za) * (b - zb)
    steps = float32(whole) * factor
    text = f"fl(fl(sa · sb) · fl(1 / sy)) = fl(fl({shown(sa)} · {shown(sb)}) · fl(1 / {shown(sy)})) = {shown(factor)}"
    lines = (
        Line("product", f"({a} − {za}) · ({b} − {zb}) = {whole}", whole, {"a": a, "b": b, "zero_a": za, "zero_b": zb}),
        Line("multiplier", f"{text}, exactly {exactly(factor)}", factor, {"scale_a": sa, "scale_b": sb, "output_scale": sy}),
        Line("multiply", f"fl({whole} · {shown(factor)}) = {shown(steps)}", steps, {"multiplier": factor}),
    )
    if body or abs(steps) < 2.0**31:
        return (*lines, *pack(steps, grids[2], relu=relu))
    lo, hi = stored_range(grids[2])
    code = hi if 0 < steps < 2.0**63 else zy if relu else lo
    return (*lines, Line("clamp", f"{shown(steps)} as int64 becomes {code}", code, {"low": lo, "high": hi}))


def applied(code: int, name: str, result: np.float32, x: Grid, y: Grid, *, body: bool, plainly: bool) -> Lines:
    """A function of one code: decoded, applied, encoded; with `plainly` decoded in one product by either loop."""
    before = decoded(code, x, body=body and not plainly)
    text = f"{name}({shown(np.float32(before.value))}) = {shown(result)} in float32"
    return (before, Line(name, text, result), *encode(result, y, body=body))


def average(e: Element, count: int, x: Grid, *, body: bool) -> Lines:
    """avg_pool: fl(fl(S) · fl(1 / count)), to which vectors add the zero behind the rounding and scalars before it."""
    (total, steps), (zero, (lo, hi)) = _mean(e, inverse(float32(count)), x), (scalar_zero(x), stored_range(x))
    if body:
        rounded = rounding(np.float32(steps.value))
        code = add_zero(int(rounded.value), zero)
        return (total, steps, rounded, code, clamp(int(code.value), lo, hi))
    v = np.float32(steps.value) + float32(zero)
    text = f"fl({shown(np.float32(steps.value))} + {zero}) = {shown(v)}; the zero is inside the rounding"
    inside = Line("zero", text, v, {"zero": zero})
    held = clamp(v, lo, hi)
    return (total, steps, inside, held, _rounded(held))


def adaptive(e: Element, x: Grid, *, body: bool) -> Lines:
    """adaptive_avg_pool: S · n + zero, n = fl(1/fl(1/fl(1/count))), rounded once in vectors and twice by scalars."""
    zero, (lo, hi) = scalar_zero(x), stored_range(x)
    factor = inverse(inverse(inverse(float32(len(e.reads)))))
    total, steps = _mean(e, factor, x)
    if body:
        acc = float32(int(total.value))
        v = fused(acc, factor, float32(zero))
        text = f"fma({shown(acc)}, {shown(factor)}, {zero}) = {shown(v)}; the zero is inside the one rounding"
        held = clamp(v, lo, hi)
        return (total, Line("multiply", text, v, {"multiplier": factor, "zero": zero}), held, _rounded(held))
    v = np.float32(steps.value) + float32(zero)
    text = f"fl({shown(np.float32(steps.value))} + {zero}) = {shown(v)}; the zero is inside the rounding"
    held = clamp(v, lo, hi)
    return (total, steps, Line("zero", text, v, {"zero": zero}), held, _rounded(held))


def mean(e: Element, x: Grid) -> Lines:
    """mean: rint(fl(fl(Σ x) / count)), of the codes themselves: the zero is inside of sum and rounding."""
    total = window_sum(e, 0)
    steps = float32(int(total.value)) / float32(len(e.reads))
    text = f"fl(fl({total.value}) / {len(e.reads)}) = {shown(steps)}; zeros are part of the codes, and inside the rounding"
    held = clamp(steps, *stored_range(x))
    return (total, Line("divide", text, steps, {"count": len(e.reads)}), held, _rounded(held))


def window_sum(e: Element, zero: int) -> Line:
    """Σ (x − z) over what is inside of the image."""
    rows = pixel_rows(e, zero)
    acc = sum(row["term"] for row in rows)
    term = f"(x − {zero})" if zero else "x"
    return Line("sum", f"Σ {term} over {len(rows)} pixels = {acc}", acc, {"pixels": len(rows), "zero": zero}, rows)


def _mean(e: Element, factor: np.float32, x: Grid) -> tuple[Line, Line]:
    total = window_sum(e, scalar_zero(x))
    acc = int(total.value)
    steps = float32(acc) * factor
    return total, Line("multiply", f"fl(fl({acc}) · {shown(factor)}) = {shown(steps)}", steps, {"multiplier": factor})


def hard_swish(v: np.float32) -> np.float32:
    """x·min(max(x + 3, 0), 6)/6, each step rounded to float32."""
    held = min(max(v + np.float32(3), np.float32(0)), np.float32(6))
    return v * held / np.float32(6)


def leaky(v: np.float32, slope: float) -> np.float32:
    """x, or x times the slope as float32 where it is not positive."""
    return v if v > 0 else v * np.float32(slope)
