"""Percentiles beside sorted lists."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exactq.calibration.extremes import Extremes
from exactq.calibration.histograms import Histogram, see_histogram
from exactq.calibration.percentile import percentile_range

data = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=60).filter(any)


@settings(max_examples=60)
@given(data, st.sampled_from([100.0, 99.0, 90.0, 60.0, 12.5]))
def test_it_is_the_rank_to_within_a_bin(xs: list[float], percent: float) -> None:
    h = see_histogram(Histogram(), torch.tensor(xs))
    share = 1 - Fraction(str(percent)) / 100
    for symmetric in (True, False):
        got = percentile_range(h, percent, symmetric=symmetric)
        outside = int(len(xs) * (share if symmetric else share / 2))
        ups = sorted((abs(x) if symmetric else x for x in xs), reverse=True)
        downs = ups if symmetric else sorted((-x for x in xs), reverse=True)
        # The (outside + 1)-th largest must stay inside; zero is always inside.
        hi, lo = (max(0.0, [*values, 0.0][outside]) for values in (ups, downs))
        if hi == lo == 0:
            assert got == h.ends, "all but zeros would go: nothing goes"
            continue
        assert hi <= got.hi <= hi + h.width
        assert lo <= -got.lo <= lo + h.width


@pytest.mark.parametrize("symmetric", [True, False])
def test_outliers_go_and_zeros_count(*, symmetric: bool) -> None:
    x = torch.cat([torch.zeros(8000), torch.ones(1998), torch.full((2,), 100.0)])
    h = see_histogram(Histogram(), x)
    cut = percentile_range(h, 99.98 if symmetric else 99.96, symmetric=symmetric)
    assert 1 <= cut.hi <= 1 + h.width
    assert percentile_range(h, 99.99 if symmetric else 99.98, symmetric=symmetric).hi == 100
    assert percentile_range(h, 100, symmetric=False) == Extremes(0, 100)
