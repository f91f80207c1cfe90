"""QGemm and QLinearMatMul of ONNX Runtime's CPU kernels (contrib_ops quant_gemm.cc, quantize_linear_matmul.cc, mlas qgemm).

acc = int32(Σ (a − za)·(b − zb) + bias)      with pairs saturating where the instruction set does (`pairs`)
y   = clamp(rint(fl(float(acc) · fl(fl(fl(alpha·sa)·sb) / sy))) + zy)      or, without sy, fl(float(acc) · fl(fl(alpha·sa)·sb))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exactq.kernels import accumulators, pairs, sums
from exactq.kernels.accumulators import Accumulator, Kernel, Layer, channel_scales
from exactq.kernels.mlas.isa import saturates
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import requantization, scalar_scale, scalar_zero
from exactq.numerics.rounding import wrap_int32


def gemm(weight: Tensor, bias: Tensor | None, *, x: Grid, w: Grid, y: Grid | None, isa: str, alpha: float = 1.0) -> Kernel:
    """The quantized linear layer: codes (…, in) of `x` -> codes (…, out) of `y`, or float32 reals if `y` is None (QGemm).

    `weight` holds codes of `w` (out, in); `bias` int32 codes (out,), not multiplied by `alpha` as its scale is already
    alpha·sx·sw. Without a bias and with alpha 1 this is QLinearMatMul with a constant second operand.
    """
    accumulate = gemm_accumulator(weight, bias, x=x, w=w, isa=isa)
    factor = torch.tensor(alpha, dtype=torch.float32) * scalar_scale(x) * channel_scales(w, weight.shape[0])
    if y is None:
        return lambda codes: accumulate(codes).to(torch.float32) * factor.to(codes.device)
    requantize = requantization(factor / scalar_scale(y), y)
    return Layer(accumulate, requantize)


def gemm_accumulator(weight: Tensor, bias: Tensor | None, *, x: Grid, w: Grid, isa: str) -> Accumulator:
    """The int32 accumulator of `gemm`, bias included, as float32 or float64 holding int32 values (…, out)."""
    excess = pairs.matrix_excess(weight) if saturates(isa, x, w) else None
    return accumulators.matrix(weight.to(torch.int32) - w.zero.reshape(-1, 1), bias, x=x, excess=excess)


def matmul(*, a: Grid, b: Grid, y: Grid, isa: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The product of two dynamic operands: codes (…, m, k) and (…, k, n) -> codes (…, m, n) of `y` (QLinearMatMul)."""
    accumulate = matmul_accumulator(a=a, b=b, isa=isa)
    requantize = requantization(scalar_scale(a) * scalar_scale(b) / scalar_scale(y), y)
    return lambda codes_a, codes_b: requantize(accumulate(codes_a, codes_b))


def matmul_accumulator(*, a: Grid, b: Grid, isa: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The int32 accumulator of `matmul`, as float32 or float64 holding int32 values (…, m, n)."""
    zero_a, zero_b = scalar_zero(a), scalar_zero(b)
    reach_a, reach_b = (max(g.format.hi - z, z - g.format.lo) for g, z in ((a, zero_a), (b, zero_b)))
    saturating = saturates(isa, a, b)

    def accumulate(codes_a: Tensor, codes_b: Tensor) -> Tensor:
        acc = sums.product_sums(codes_a.float() - zero_a, codes_b.float() - zero_b, reach_a=reach_a, reach_b=reach_b)
        if saturating:
            acc = acc.double() + pairs.product_excess(codes_a, codes_b)
        return acc if acc.dtype == torch.float32 else wrap_int32(acc)

    return accumulate
