"""QLinearAdd and QLinearMul of ONNX Runtime's CPU kernels (mlas/lib/intrinsics/avx2/qladd_avx2.cpp, qlmul.cpp).

Add, with ra = fl(sa/sy), rb = fl(sb/sy); fma rounds once, and where the source has a product and a sum the compiler made one:
  vectors      fixed = fl(zy − fma(ra, za, fl(rb·zb)));  v = fma(a, ra, fma(b, rb, fixed))
  b a scalar   fixed as above;                           v = fma(a, ra, fma(b, rb, fixed))
  a a scalar   fixed = fl(zy − fma(rb, zb, fl(ra·za)));  v = fma(b, rb, fma(a, ra, fixed))
Mul, with r = fl(fl(sa·sb)/sy):  v = fl(fl(float((a − za)·(b − zb))·r) + zy)
y = sat8(sat16(rint(v))): the zero is inside the rounding, and |v| ≥ 2³¹ becomes −2³¹ (cvtps2dq).
Which of the three an element takes follows from the shapes, see `scalar_operand`.

A function of two codes has 65,536 values, so each kernel's definition is evaluated on all of them once; plain float32 formulas
are then tried until one gives the same 65,536, and only if none does the values are looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from exactq.numerics.formats import Grid
from exactq.numerics.lookup import all_codes, look_up_pair
from exactq.numerics.requantization import scalar_scale, scalar_zero, stored_range
from exactq.numerics.rounding import fma

Pair = Callable[[Tensor, Tensor], Tensor]
"""Two broadcasting tensors of codes -> codes as float32 holding integers."""


def add(a: Grid, b: Grid, y: Grid) -> Pair:
    """The sum of two quantized tensors, which broadcast: codes of `a` and `b` -> codes of `y`."""
    lo, hi = stored_range(y)
    ra, rb = scalar_scale(a) / scalar_scale(y), scalar_scale(b) / scalar_scale(y)
    codes_a, codes_b = all_codes(a.format)[:, None], all_codes(b.format)[None, :]

    def formulas(fixed: Tensor) -> Iterator[Pair]:
        # The float32 formula errs by less than an ulp, so some neighbour of `fixed` may round every near-tie the right way.
        for offset in _neighbours(fixed):
            yield partial(_sum_first, ra=ra, rb=rb, offset=offset)
            yield partial(_offset_first, ra=ra, rb=rb, offset=offset)

    def kernel(inner: Tensor, slope: Tensor, codes: Tensor, fixed: Tensor) -> Pair:
        return _fastest(_saturate(fma(codes, slope, inner), lo, hi), formulas(fixed), a, b, y)

    fixed, exchanged = _fixed(a, b, y, ra, rb, None), _fixed(a, b, y, ra, rb, "a")
    vectors = kernel(fma(codes_b, rb, fixed), ra, codes_a, fixed)
    first_scalar = kernel(fma(codes_a, ra, exchanged), rb, codes_b, exchanged)

    def apply(p: Tensor, q: Tensor) -> Tensor:
        return (first_scalar if scalar_operand(p.shape, q.shape) == "a" else vectors)(p, q)

    return apply


def mul(a: Grid, b: Grid, y: Grid) -> Pair:
    """The product of two quantized tensors, which broadcast: codes of `a` and `b` -> codes of `y`."""
    za, zb, zy = scalar_zero(a), scalar_zero(b), scalar_zero(y)
    r = scalar_scale(a) * scalar_scale(b) / scalar_scale(y)

    def formula(p: Tensor, q: Tensor) -> Tensor:
        return ((p - za) * (q - zb)).mul_(r).add_(zy)

    v = formula(all_codes(a.format)[:, None], all_codes(b.format)[None, :])
    return _fastest(_saturate(v, *stored_range(y)), iter([formula]), a, b, y)


def scalar_operand(a: Sequence[int], b: Sequence[int]) -> str | None:
    """Which operand the inner loop of a broadcast repeats, "a" or "b", or None if it reads both (ORT's InputBroadcaster).

    The innermost axis on which not both sizes are 1 decides; two tensors of one element are the case "a".

    >>> scalar_operand((2, 8, 4, 4), (8, 1, 1)), scalar_operand((8, 4), (4,)), scalar_operand((), (1,))
    ('b', None, 'a')
    """
    rank = max(len(a), len(b))
    sizes_a, sizes_b = ([1] * (rank - len(s)) + list(s) for s in (a, b))
    for size_a, size_b in zip(reversed(sizes_a), reversed(sizes_b), strict=True):
        if size_a != size_b:
            return "a" if size_a == 1 else "b"
        if size_a != 1:
            return None
    return "a"


def _sum_first(p: Tensor, q: Tensor, *, ra: Tensor, rb: Tensor, offset: Tensor) -> Tensor:
    return (p * ra) + (q * rb) + offset


def _offset_first(p: Tensor, q: Tensor, *, ra: Tensor, rb: Tensor, offset: Tensor) -> Tensor:
    return (p * ra) + (q * rb + offset)


def _fixed(a: Grid, b: Grid, y: Grid, ra: Tensor, rb: Tensor, scalar: str | None) -> Tensor:
    za, zb, zy = (torch.tensor(float(scalar_zero(grid))) for grid in (a, b, y))
    return zy - (fma(rb, zb, ra * za) if scalar == "a" else fma(ra, za, rb * zb))


def _saturate(v: Tensor, lo: int, hi: int) -> Tensor:
    v = v.round()
    return torch.where((v >= 2**31) | v.isnan(), float(lo), v.clamp(lo, hi))


def _neighbours(fixed: Tensor, ulps: int = 6) -> Iterator[Tensor]:
    up = down = fixed
    yield fixed
    for _ in range(ulps):
        up, down = torch.nextafter(up, torch.tensor(torch.inf)), torch.nextafter(down, torch.tensor(-torch.inf))
        yield up
        yield down


def _fastest(values: Tensor, formulas: Iterator[Pair], a: Grid, b: Grid, y: Grid) -> Pair:
    """The first formula that gives `values` on all pairs of codes, clamped and rounded; else the table of them."""
    lo, hi = stored_range(y)
    codes_a, codes_b = all_codes(a.format)[:, None], all_codes(b.format)[None, :]

    def of(formula: Pair) -> Pair:
        return lambda p, q: formula(p.to(torch.float32), q.to(torch.float32)).clamp_(lo, hi).round_()

    for kernel in map(of, formulas):
        if torch.equal(kernel(codes_a, codes_b), values):
            return kernel
    return look_up_pair(values, a.format, b.format)
