"""The operators that ONNX Runtime evaluates once on 256 codes (contrib_ops/cpu/quantization/qlinear_lookup_table.cc).

entry i = Quantize(f(fl(sx·(i − zx))), sy, zy) in float32, for Sigmoid, LeakyRelu and each input of Concat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from exactq.kernels.accumulators import Kernel
from exactq.kernels.mlas.quantize import dequantize_linear, quantize_linear
from exactq.numerics.formats import Grid
from exactq.numerics.lookup import all_codes, look_up
from exactq.numerics.rounding import fma


def table(fn: Callable[[Tensor], Tensor], x: Grid, y: Grid) -> Kernel:
    """The kernel codes of `x` -> codes of `y` whose every entry is `fn` of a float32 real, quantized."""
    return look_up(quantize_linear(y)(fn(dequantize_linear(x)(all_codes(x.format)))), x.format)


def sigmoid(x: Grid, y: Grid) -> Kernel:
    """QLinearSigmoid: codes of `x` -> codes of `y`, by MLAS's own logistic function."""
    return table(logistic, x, y)


def leaky_relu(x: Grid, y: Grid, *, slope: float) -> Kernel:
    """QLinearLeakyRelu: codes of `x` -> codes of `y`; the slope is rounded to float32."""
    negative = torch.tensor(slope, dtype=torch.float32)
    return table(lambda v: torch.where(v >= 0, v, v * negative), x, y)


def concat(xs: Sequence[Grid], y: Grid, *, axis: int) -> Callable[..., Tensor]:
    """QLinearConcat: codes of each of `xs` -> codes of `y`, one after the other; inputs that are already on `y` are copied."""
    kernels = [None if _same(x, y) else table(lambda v: v, x, y) for x in xs]

    def apply(*codes: Tensor) -> Tensor:
        parts = [part.to(torch.float32) if k is None else k(part) for k, part in zip(kernels, codes, strict=True)]
        return torch.cat(parts, axis)

    return apply


# The rational approximation of tanh(x/2)/2 that Eigen has, as in mlas/lib/logistic.cpp; evaluated with FMA on every ISA here.
_BOUND = 18.0
_ODD = (4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01)
_EVEN = (
    6.10247389755681e-13,
    5.76102136993427e-09,
    6.29106785017040e-06,
    1.70198817374094e-03,
    1.16817656904453e-01,
    9.93151921023180e-01,
)


def logistic(x: Tensor) -> Tensor:
    """MLAS's float32 sigmoid, bit for bit: p(x)/q(x²) + ½ clamped to 0..1, both by Horner's rule in fused multiply-adds.

    It is not the correctly rounded sigmoid: 61 % of normally distributed inputs differ in the last bits.
    """
    v = x.to(torch.float32).clamp(-_BOUND, _BOUND)
    square = v * v
    p, q = _horner(_ODD, square) * v, _horner(_EVEN, square)
    return (p / q + 0.5).clamp(0.0, 1.0)


def _horner(coefficients: Sequence[float], at: Tensor) -> Tensor:
    value = torch.full_like(at, coefficients[0])
    for coefficient in coefficients[1:]:
        value = fma(value, at, torch.full_like(at, coefficient))
    return value


def _same(x: Grid, y: Grid) -> bool:
    return x.format == y.format and torch.equal(x.scale, y.scale) and torch.equal(x.zero, y.zero)
