"""The lines of a sum of products: terms, zero points, saturating pairs, the bias and the accumulator, in Python integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import log2
from typing import Any

import numpy as np
from torch import Tensor

from exactq.explanation.wording import largest
from exactq.kernels.anatomy import FloatBias, IntegerBias, Line, Lines, Place, Products
from exactq.numerics.scalars import scalar, shown


@dataclass(frozen=True)
class Term:
    """Two codes that meet: where each lies (None: padding), and the codes."""

    x_at: Place | None
    w_at: Place
    x: int
    w: int


def product_lines(
    anatomy: Products, at: Place, operands: Sequence[Tensor], bias: float | None, lsb: float, shown_terms: int
) -> Lines:
    """The lines from the terms to the code. `bias` is the float model's, `lsb` the step of the output grid."""
    channel = 0 if anatomy.weight is None else at[anatomy.channel]
    zx, zw = int(anatomy.x.zero), _zero(anatomy, channel)
    terms = _terms(anatomy, at, operands, zx)
    total = sum((t.x - zx) * (t.w - zw) for t in terms)
    lines = [_sum(terms, zx, zw, total, shown_terms), _zeros(terms, zx, zw, total)]
    excess = 0
    if anatomy.pairs is not None:
        line = _saturation(terms, list(anatomy.pairs([(t.x_at, t.w_at) for t in terms])), shown_terms)
        lines.append(line)
        excess = int(line.value)
    added, line = _bias(anatomy, channel, bias, lsb)
    lines += [line, _accumulator(total, excess, added)]
    joined = () if anatomy.added is None else (int(operands[-1][at]),)
    return (*lines, *anatomy.finish(int(lines[-1].value), channel, *joined))


def _zero(anatomy: Products, channel: int) -> int:
    zeros = anatomy.w.zero.flatten()
    return int(zeros[channel if zeros.numel() > 1 else 0])


def _terms(anatomy: Products, at: Place, operands: Sequence[Tensor], zx: int) -> list[Term]:
    x = operands[0].numpy()
    w = (operands[1] if anatomy.weight is None else anatomy.weight).numpy()
    places = anatomy.terms(at, [tuple(operand.shape) for operand in operands])
    return [Term(x_at, w_at, zx if x_at is None else int(x[x_at]), int(w[w_at])) for x_at, w_at in places]


def _sum(terms: Sequence[Term], zx: int, zw: int, total: int, count: int) -> Line:
    rows: list[dict[str, Any]] = [
        {"x_at": t.x_at, "x": t.x, "centred": t.x - zx, "w_at": t.w_at, "w": t.w, "term": (t.x - zx) * (t.w - zw)}
        for t in terms
        if t.x_at is not None
    ]
    padding = len(terms) - len(rows)
    edge = f"; {padding} more lie in the padding, where x = zx" if padding else ""
    weight = f"(w − {zw})" if zw else "w"
    text = f"Σ (x − {zx}) · {weight} over {len(rows)} terms = {total}{edge}"
    return Line("products", text, total, {"terms": len(rows), "padding": padding}, largest(tuple(rows), count))


def _zeros(terms: Sequence[Term], zx: int, zw: int, total: int) -> Line:
    raw, sum_x, sum_w = sum(t.x * t.w for t in terms), sum(t.x for t in terms), sum(t.w for t in terms)
    values = {"raw": raw, "sum_x": sum_x, "sum_w": sum_w, "zero_x": zx, "zero_w": zw}
    parts = [f"Σ x · w = {raw}"]
    if zx:
        parts.append(f"− {zx} · Σ w ({sum_w})")
    if zw:
        parts.append(f"− {zw} · Σ x ({sum_x})")
    if zx and zw:
        parts.append(f"+ {len(terms)} · {zx} · {zw}")
    text = f"raw codes: {' '.join(parts)} = {total}" if zx or zw else f"both zero points are 0: raw codes give the same {raw}"
    return Line("zero points", text, raw - total, values)


def _saturation(terms: Sequence[Term], pairs: Sequence[tuple[int, ...]], count: int) -> Line:
    """What it adds that raw products are summed in int16 two by two: Σ over pairs of sat16(p) − p."""
    rows = []
    for positions in pairs:
        several = [terms[p] for p in positions]
        pair = sum(t.x * t.w for t in several)
        held = min(max(pair, -(2**15)), 2**15 - 1)
        if held != pair:
            ends = {"w_at": several[0].w_at, "w_at_2": several[-1].w_at}
            rows.append({**ends, "pair": pair, "int16": held, "term": held - pair})
    excess = sum(row["term"] for row in rows)  # type: ignore[misc]
    text = (
        f"{len(rows)} of {len(pairs)} pairs of neighbours leave int16; saturation adds {excess:+d}"
        if rows
        else f"none of {len(pairs)} pairs of neighbours leaves int16"
    )
    return Line("saturation", text, excess, {"pairs": len(pairs), "saturated": len(rows)}, largest(tuple(rows), count))


def _bias(anatomy: Products, channel: int, bias: float | None, lsb: float) -> tuple[int, Line]:
    """What is added to the integer sum, and the line about it."""
    match anatomy.bias:
        case None:
            return 0, Line("bias", "there is none", 0, {"held": None})
        case FloatBias(values, scale):
            held, step = (scalar(t.flatten()[channel if t.numel() > 1 else 0]) for t in (values, scale))
            text, facts = f"{shown(held)} stays float32 and is added below", {"held": "float32", "scale": step}
            if 0 < step < np.inf and np.isfinite(held):
                would = int32_code(held, step)
                error = float(would * Fraction(float(step)) - Fraction(float(held)))
                text += (
                    f"; as int32 on steps of fl(sx · sw) = {shown(step)} it would be code {would}, "
                    f"which would cost {error:.3g}, {error / lsb:.2g} LSB"
                )
                facts |= {"code": would, "error": error, "error_lsb": error / lsb}
            return 0, Line("bias", text, held, facts)
        case IntegerBias(codes, scale):
            code, step = int(codes[channel]), scalar(scale.flatten()[channel if scale.numel() > 1 else 0])
            text = f"code {code} on steps of fl(sx · sw) = {shown(step)}"
            values_: dict[str, Any] = {"held": "int32", "scale": step, "float": bias}
            if bias is not None:
                exact = Fraction(float(step))
                quotient, error = Fraction(bias) / exact, float(code * exact - Fraction(bias))
                text = (
                    f"{shown(np.float32(bias))} / fl(sx · sw) = {shown(np.float32(bias))} / {shown(step)} = "
                    f"{float(quotient):.9g}, code {code}; rounding it costs {error:.3g}, {error / lsb:.2g} LSB"
                )
                if not -(2**31) <= round(quotient) < 2**31:
                    text += ": it needs a code beyond int32, and the engine makes this of it"
                values_ |= {"error": error, "error_lsb": error / lsb}
            return code, Line("bias", text, code, values_)


def int32_code(bias: np.float32, step: np.float32) -> int:
    """The nearest int32 code of a real on those steps, ties to even."""
    return min(max(round(Fraction(float(bias)) / Fraction(float(step))), -(2**31)), 2**31 - 1)


def _accumulator(total: int, excess: int, bias: int) -> Line:
    exact = total + excess + bias
    acc = (exact + 2**31) % 2**32 - 2**31
    parts = str(total) + "".join(f" {'-' if part < 0 else '+'} {abs(part)}" for part in (excess, bias) if part)
    room = f"{31 - log2(abs(acc)):.1f} bits below int32's end" if acc else "all of int32 is left"
    fate = f"which wraps in int32 to {acc}" if acc != exact else room
    return Line(
        "accumulator",
        f"{parts}{f' = {exact}' if excess or bias else ''}, {fate}",
        acc,
        {"exact": exact, "sum": total, "excess": excess, "bias": bias},
    )
