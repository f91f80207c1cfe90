"""Grids from ranges: zero is exact, every real is near a code, and the arithmetic is the one named."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exactq.errors import DataError
from exactq.numerics.formats import FORMATS, INT8, INT32, UINT8, Format
from exactq.quantization.ranges import SMALLEST, grid, middle, reach

SMALL = [f for f in FORMATS.values() if f.bits <= 16]
formats = st.sampled_from([*SMALL, *(f.narrow for f in SMALL if f.signed)])
ends = st.floats(-(2.0**126), 2.0**126, width=32) | st.floats(-10, 10, width=32)


@settings(max_examples=300)
@given(a=ends, b=ends, fmt=formats, symmetric=st.booleans(), at=st.floats(0, 1))
def test_zero_is_exact_and_error_is_at_most_half_a_step(*, a: float, b: float, fmt: Format, symmetric: bool, at: float) -> None:
    lo, hi = min(a, b), max(a, b)
    g = grid(lo, hi, fmt, symmetric=symmetric)
    scale = Fraction(g.scale.item())
    assert scale >= Fraction(SMALLEST)
    zero = g.encode(torch.tensor([0.0, -0.0]))
    assert g.decode(zero).tolist() == [0.0, 0.0]
    inside = torch.tensor([lo, hi, lo + (hi - lo) * at], dtype=torch.float32).clamp(lo, hi)
    codes = g.encode(inside).tolist()
    for x, code in zip(inside.tolist(), codes, strict=True):
        error = abs(scale * (code - int(g.zero)) - Fraction(x)) / scale
        # Half a step, and what four float32 roundings (hi − lo, scale, lo/scale, x/scale) move it: 2^-24 of the steps each.
        assert error <= Fraction(1, 2) + 4 * Fraction(fmt.hi - fmt.lo + 1, 2**24)


@pytest.mark.parametrize("seed", range(3))
def test_uint8_is_onnx_dynamic_quantize_linear(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(300):
        lo, hi = np.sort(rng.normal(size=2) * 10.0 ** rng.integers(-6, 6)).astype(np.float32)
        lo, hi = min(lo, np.float32(0)), max(hi, np.float32(0))
        scale = np.float32(1) if lo == hi else np.float32(np.float32(hi - lo) / np.float32(255))
        zero = np.rint(np.clip(np.float32(0) - np.float32(lo / scale), 0, 255))
        g = grid(float(lo), float(hi), UINT8)
        assert (g.scale.item(), g.zero.item()) == (scale, zero)


@given(formats)
def test_a_symmetric_grid_reaches_both_ends_and_has_zero_in_the_middle(fmt: Format) -> None:
    g = grid(-3.0, 2.0, fmt, symmetric=True)
    codes = g.encode(torch.tensor([-3.0, 0.0, 3.0])).to(torch.int64)
    assert codes.tolist() == [middle(fmt) - reach(fmt), middle(fmt), middle(fmt) + reach(fmt)]
    assert reach(fmt) == (2 ** (fmt.bits - 1) - 1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_degenerate_ranges_have_a_stated_grid(*, symmetric: bool) -> None:
    assert grid(0.0, 0.0, INT8, symmetric=symmetric).scale == 1
    assert grid(-0.0, 0.0, UINT8, symmetric=symmetric).scale == 1
    assert grid(0.0, 1e-45, INT8, symmetric=symmetric).scale == SMALLEST
    widened = grid(2.0, 3.0, UINT8, symmetric=symmetric)
    assert widened.scale == grid(0.0, 3.0, UINT8, symmetric=symmetric).scale


def test_tensors_of_ends_give_a_grid_each() -> None:
    lo, hi = torch.tensor([[-1.0], [0.0], [-4.0]]), torch.tensor([[3.0], [0.0], [0.0]])
    for symmetric in (True, False):
        many = grid(lo, hi, INT8, symmetric=symmetric)
        for i in range(3):
            one = grid(lo[i, 0], hi[i, 0], INT8, symmetric=symmetric)
            assert (many.scale[i, 0], many.zero[i, 0]) == (one.scale, one.zero)


@pytest.mark.parametrize(("lo", "hi"), [(math.nan, 1), (0, math.nan), (0, math.inf), (-1e39, 0), (-1, 1e38), (2, 1)])
def test_what_is_no_range_is_refused(lo: float, hi: float) -> None:
    with pytest.raises(DataError, match=r"is no range: it needs two numbers within ±2\^126, the lower first"):
        grid(lo, hi, INT8)
    with pytest.raises(DataError, match="is no range"):
        grid(torch.tensor([-1.0, lo]), torch.tensor([1.0, hi]), INT8)


def test_formats_that_float32_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(DataError, match="no grid in int32"):
        grid(-1, 1, INT32)
