"""QNNPACK's table of hardswish, and its addition: fixed point, rounded half away from zero (qnnpack q8vadd/sse2.c, src/add.c).

r_a = fl(sa/s), r_b = fl(sb/s), shift = 21 − e with 2ᵉ ≤ max(r_a, r_b) < 2ᵉ⁺¹
m_a = rint(r_a·2^shift), m_b likewise: 22 bits
y = clamp(sat16(asr(int32(m_a·a + m_b·b − (m_a·za + m_b·zb)), shift)) + z)     asr rounds half away from zero
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from exactq.errors import ModelError
from exactq.kernels.accumulators import Kernel
from exactq.kernels.aten.elementwise import hard_swish
from exactq.kernels.aten.quantize import dequantize, quantize_scalar
from exactq.numerics.formats import Grid
from exactq.numerics.lookup import all_codes, look_up, look_up_pair
from exactq.numerics.requantization import scalar_scale, scalar_zero, stored_range
from exactq.numerics.rounding import wrap_int32


def adds(a: Grid, b: Grid, y: Grid) -> bool:
    """Whether QNNPACK adds codes of these grids: the ratios of both scales to the sum's lie in 2⁻¹⁴..2⁸ (src/add.c)."""
    return all(2.0**-14 <= float(scalar_scale(g) / scalar_scale(y)) < 2.0**8 for g in (a, b))


def add(a: Grid, b: Grid, y: Grid, *, relu: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """quantized::add and add_relu on QNNPACK: codes of `a` and of `b`, of one shape -> codes of `y`.

    Raises `ModelError` for scales that QNNPACK refuses: a ratio to the output's outside 2⁻¹⁴..2⁸.
    """
    if not adds(a, b, y):
        raise ModelError(f"QNNPACK adds codes whose scales are 2^-14..2^8 times the sum's, not those of {a}, {b} and {y}")
    ratios = [scalar_scale(g) / scalar_scale(y) for g in (a, b)]
    shift = 21 - (math.frexp(max(float(r) for r in ratios))[1] - 1)
    ma, mb = (int(torch.round(r * 2.0**shift)) for r in ratios)
    p, q = all_codes(a.format).long() * ma, all_codes(b.format).long() * mb
    sums = p[:, None] + q[None] - (ma * scalar_zero(a) + mb * scalar_zero(b))
    acc = wrap_int32(sums.double()).long()
    rest = (acc & (2**shift - 1)) - (acc < 0).long()
    steps = (acc >> shift) + (rest > (2**shift - 1) >> 1).long()
    zero, (lo, hi) = scalar_zero(y), stored_range(y)
    codes = (steps.clamp(-32768, 32767) + zero).clamp(zero if relu else lo, hi).to(torch.float32)
    return look_up_pair(codes, a.format, b.format)


def hardswish(x: Grid, y: Grid) -> Kernel:
    """quantized::hardswish on QNNPACK, all as ATen's scalar loop has it: codes of `x` -> codes of `y` (src/hardswish.c)."""
    return look_up(quantize_scalar(y)(hard_swish(dequantize(x)(all_codes(x.format)))), x.format)
