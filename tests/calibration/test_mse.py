"""The squared error beside a loop, and what the search promises."""

from __future__ import annotations

import pytest
import torch

from exactq.calibration.histograms import BINS, Histogram, see_histogram
from exactq.calibration.mse import mse_range, squared_error
from exactq.numerics.formats import INT4, INT8, INT16, UINT4, UINT8, Format
from exactq.quantization.ranges import grid

KINDS = [(UINT8, False), (INT8, True), (INT8.narrow, True), (INT4, True), (UINT4, False), (INT4, False), (UINT8, True)]


def samples() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(20000, generator=g)
    return {"normal": normal, "relu": normal.relu(), "negative": -normal.abs(), "cubed": normal**3, "few": normal[:3]}


def as_tensor(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float64)


@pytest.mark.parametrize(("fmt", "symmetric"), KINDS)
@pytest.mark.parametrize("name", samples())
def test_the_error_is_that_of_the_real_grid(*, fmt: Format, symmetric: bool, name: str) -> None:
    h = see_histogram(Histogram(), samples()[name])
    hi = 0.7 * max(h.ends.hi, -h.ends.lo if symmetric else 0.0)
    lo = -hi if symmetric else 0.7 * min(h.ends.lo, 0.0)
    g = grid(lo, hi, fmt, symmetric=symmetric)
    filled = h.counts.nonzero().flatten()
    centres = (((filled - BINS).double() + 0.5) * h.width).clamp(h.ends.lo, h.ends.hi).float()
    counts, reals, coded = (x.tolist() for x in (h.counts[filled], centres, g.decode(g.encode(centres))))
    plain = sum(n * (c - d) ** 2 for n, c, d in zip(counts, reals, coded, strict=True))
    got = squared_error(h, as_tensor(lo), as_tensor(hi), fmt, symmetric=symmetric).item()
    # float32 scale and quotients: a relative 2^-23 of the step per step away from zero, and ties may fall the other way.
    assert got == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize(("fmt", "symmetric"), KINDS)
@pytest.mark.parametrize("name", samples())
def test_it_loses_no_more_than_the_datas_own_range(*, fmt: Format, symmetric: bool, name: str) -> None:
    h = see_histogram(Histogram(), samples()[name])
    ends = mse_range(h, fmt, symmetric=symmetric)
    lo, hi = min(h.ends.lo, 0.0), max(h.ends.hi, 0.0)
    if symmetric:
        lo, hi = -max(-lo, hi), max(-lo, hi)
    least = squared_error(h, as_tensor(ends.lo), as_tensor(ends.hi), fmt, symmetric=symmetric)
    assert least <= squared_error(h, as_tensor(lo), as_tensor(hi), fmt, symmetric=symmetric)


def test_four_bits_clip_a_gaussian_near_the_known_optimum_and_sixteen_do_not() -> None:
    h = see_histogram(Histogram(), torch.randn(200_000, generator=torch.Generator().manual_seed(1)))
    # Optimal uniform quantizer of a normal variable (Max 1960, table II): 16 levels, step 0.3352; 15 levels lie near 0.354.
    assert mse_range(h, INT4.narrow, symmetric=True).hi / 7 == pytest.approx(0.354, rel=0.03)
    assert mse_range(h, INT16, symmetric=True).hi == max(-h.ends.lo, h.ends.hi)
