"""Element by element: functions of one code or two are tables of 256 or 65,536 entries, one for each loop.

add      q(fl(deq(a) + deq(b)))                      in each loop's own rounding
mul      clamp(cvt(fl(fl((a − za)·(b − zb)) · m)) + z), m = fl(fl(sa·sb) · fl(1/s)); cvt is CVTPS2DQ
sigmoid, hardswish, leaky_relu                       q(f(deq(x))), likewise
(native/quantized/cpu/kernels/QuantizedOpKernels.cpp)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exactq.kernels.accumulators import Kernel
from exactq.kernels.aten.isa import BLOCK
from exactq.kernels.aten.layout import tailed
from exactq.kernels.aten.quantize import dequantize, dequantize_vector, quantize_scalar, quantize_vector
from exactq.numerics.formats import Grid
from exactq.numerics.lookup import all_codes, look_up, look_up_pair
from exactq.numerics.requantization import packing_to_codes, scalar_scale, scalar_zero, stored_range

Pairwise = Callable[[Tensor, Tensor], Tensor]
Real = Callable[[Tensor], Tensor]


def add(a: Grid, b: Grid, y: Grid, *, relu: bool = False) -> Pairwise:
    """quantized::add and add_relu: codes of `a` and of `b`, of one shape -> codes of `y`."""

    def entries(decode: Callable[[Grid], Real], encode: Callable[[Grid], Real]) -> Tensor:
        total = decode(a)(all_codes(a.format))[:, None] + decode(b)(all_codes(b.format))[None]
        return encode(y)(total.clamp(min=0) if relu else total)

    body, tail = entries(dequantize_vector, quantize_vector), entries(dequantize, quantize_scalar)
    return tailed(*(look_up_pair(t, a.format, b.format) for t in (body, tail)), block=BLOCK)


def mul(a: Grid, b: Grid, y: Grid, *, relu: bool = False) -> Pairwise:
    """quantized::mul and mul_relu: codes of `a` and of `b` -> codes of `y`.

    Both loops round alike, but the vectors convert to int32 and the scalars to int64: beyond it is the lowest code.
    """
    p, q = all_codes(a.format) - scalar_zero(a), all_codes(b.format) - scalar_zero(b)
    factor = scalar_scale(a) * scalar_scale(b) * (1 / scalar_scale(y))
    steps, zero, (lo, hi) = p[:, None] * q[None] * factor, scalar_zero(y), stored_range(y)
    tail = steps.masked_fill(steps >= 2.0**63, -torch.inf).round_().add_(zero).clamp_(zero if relu else lo, hi)
    body = packing_to_codes(y, relu=relu)(steps)
    return tailed(*(look_up_pair(t, a.format, b.format) for t in (body, tail)), block=BLOCK)


def unary(x: Grid, y: Grid, vector: Real, scalar: Real, decode: Callable[[Grid], Real] = dequantize_vector) -> Kernel:
    """The kernel q(f(deq(x))), with f and the decoding as the vector loop computes them, and f as the scalar one does."""
    codes = all_codes(x.format)
    body = quantize_vector(y)(vector(decode(x)(codes)))
    tail = quantize_scalar(y)(scalar(dequantize(x)(codes)))
    return tailed(look_up(body, x.format), look_up(tail, x.format), block=BLOCK)


def sigmoid(x: Grid, y: Grid) -> Kernel:
    """quantized::sigmoid, with Sleef's exponential in the vector loop and the C library's in the other, as ATen's sigmoid."""

    def one_by_one(reals: Tensor) -> Tensor:
        return torch.cat([torch.sigmoid(r) for r in reals.split(1)])

    # The vector loop decodes in one product here: the code of 0 becomes 0 itself (measured).
    return unary(x, y, torch.sigmoid, one_by_one, dequantize)


def hardswish(x: Grid, y: Grid) -> Kernel:
    """quantized::hardswish: codes of `x` -> codes of `y`."""
    return unary(x, y, hard_swish, hard_swish)


def hard_swish(v: Tensor) -> Tensor:
    """x·min(max(x + 3, 0), 6)/6 of reals, each step rounded to float32."""
    return v * (v + 3).clamp(0, 6) / 6


def leaky_relu(x: Grid, y: Grid, *, slope: float) -> Kernel:
    """quantized::leaky_relu; the slope is rounded to float32."""
    negative = torch.tensor(slope, dtype=torch.float32)

    def f(v: Tensor) -> Tensor:
        return torch.where(v > 0, v, v * negative)

    return unary(x, y, f, f)
