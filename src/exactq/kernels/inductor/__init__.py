"""The arithmetic of the loops that torch.compile's CPU backend writes in C++ for Q/DQ graphs: IEEE operations one by one.

encode, decode   `aten.quantize_decomposed`, `aten.dequantize`; encode alone is `quantize`
add, mul         encode(decode(a) ∘ decode(b)), with relu between
average          y = clamp(rint(fl(S / n)) + z), S = Σ (q − z): the pool is asked for codes on the grid of scale 1
The compiler is told -ffp-contract=off, so neither vectors nor the elements left over are fused. What multiplies with weights is
oneDNN's (`kernels.onednn`). Evidence: targets/pytorch/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from exactq.kernels.accumulators import Kernel
from exactq.kernels.aten.elementwise import hard_swish
from exactq.kernels.aten.pool import adaptive_sums, window_sums
from exactq.kernels.aten.quantize import dequantize, quantize_decomposed
from exactq.kernels.inductor.anatomy import ANATOMIES
from exactq.numerics.formats import Grid
from exactq.numerics.lookup import all_codes, look_up, look_up_pair
from exactq.numerics.requantization import scalar_zero, stored_range


def quantize(y: Grid) -> Kernel:
    """Reals -> codes of `y`: quantized_decomposed.quantize_per_tensor."""
    return quantize_decomposed(y)


def add(a: Grid, b: Grid, y: Grid, *, relu: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """The sum of codes of `a` and of `b`, of one shape, as codes of `y`."""
    total = _decoded(a)[:, None] + _decoded(b)[None]
    return look_up_pair(quantize(y)(total.clamp(min=0) if relu else total), a.format, b.format)


def mul(a: Grid, b: Grid, y: Grid, *, relu: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """The product of codes of `a` and of `b`, of one shape, as codes of `y`."""
    product = _decoded(a)[:, None] * _decoded(b)[None]
    return look_up_pair(quantize(y)(product.clamp(min=0) if relu else product), a.format, b.format)


def hardswish(x: Grid, y: Grid) -> Kernel:
    """hardswish: codes of `x` -> codes of `y`."""
    return look_up(quantize(y)(hard_swish(_decoded(x))), x.format)


def leaky_relu(x: Grid, y: Grid, *, slope: float) -> Kernel:
    """leaky_relu, whose slope is rounded to float32: codes of `x` -> codes of `y`."""
    v, negative = _decoded(x), torch.tensor(slope, dtype=torch.float32)
    return look_up(quantize(y)(torch.where(v > 0, v, v * negative)), x.format)


def concat(xs: Sequence[Grid], y: Grid, *, axis: int) -> Callable[..., Tensor]:
    """Codes of each of `xs` -> codes of `y`, one after the other."""
    tables = [look_up(quantize(y)(_decoded(x)), x.format) for x in xs]
    return lambda *codes: torch.cat([table(c) for table, c in zip(tables, codes, strict=True)], axis)


def _decoded(x: Grid) -> Tensor:
    return dequantize(x)(all_codes(x.format))


def average_pool(
    x: Grid, *, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], count_include_pad: bool = True
) -> Kernel:
    """The mean of each window: codes (n, c, *image) of `x` -> codes of `x`."""
    finish = _mean(x)

    def apply(codes: Tensor) -> Tensor:
        total = window_sums(codes.to(torch.float32) - scalar_zero(x), kernel=kernel, stride=stride, padding=padding)
        ones = torch.ones((1, 1, *codes.shape[2:]), device=codes.device)
        if count_include_pad:
            ones = F.pad(ones, [n for p in reversed(padding) for n in (p, p)], value=1.0)
        counted = (0,) * len(kernel) if count_include_pad else padding
        return finish(total, window_sums(ones, kernel=kernel, stride=stride, padding=counted))

    return apply


def adaptive_average_pool(x: Grid, *, output: Sequence[int]) -> Kernel:
    """The mean of each of `output` parts of the image, which may overlap: codes (n, c, *image) of `x` -> codes of `x`."""
    finish = _mean(x)

    def apply(codes: Tensor) -> Tensor:
        return finish(*adaptive_sums(codes.to(torch.float32) - scalar_zero(x), output))

    return apply


def mean(x: Grid, *, dims: Sequence[int], keep: bool) -> Kernel:
    """The mean over the axes `dims`: codes of `x` -> codes of `x`."""
    finish = _mean(x)

    def apply(codes: Tensor) -> Tensor:
        total = (codes.double() - scalar_zero(x)).sum(tuple(dims), keepdim=keep)
        return finish(total, torch.tensor(codes.numel() / max(1, total.numel())))

    return apply


def _mean(x: Grid) -> Callable[[Tensor, Tensor], Tensor]:
    zero, (lo, hi) = scalar_zero(x), stored_range(x)
    return lambda total, count: total.float().div_(count.float()).round_().add_(zero).clamp_(lo, hi)


__all__ = [
    "ANATOMIES",
    "adaptive_average_pool",
    "add",
    "average_pool",
    "concat",
    "hardswish",
    "leaky_relu",
    "mean",
    "mul",
    "quantize",
]
