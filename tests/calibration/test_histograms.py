"""Histograms beside Python integers: every count, every exponent."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exactq.calibration.extremes import Extremes
from exactq.calibration.histograms import BINS, FINEST, Histogram, coarsened, holding, see_histogram

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def plain(xs: list[float]) -> tuple[int, dict[int, int], int]:
    """Exponent, bin -> count, zeros, with Fractions and a search."""
    exponent = FINEST
    while not all(-BINS <= Fraction(x) / Fraction(2) ** exponent < BINS for x in xs):
        exponent += 1
    bins = Counter(math.floor(Fraction(x) / Fraction(2) ** exponent) for x in xs if x)
    return exponent, dict(bins), sum(x == 0 for x in xs)


@settings(max_examples=60)
@given(st.lists(floats | st.integers(-20, 20).map(lambda n: float(2.0**n)) | st.just(-0.0), min_size=1, max_size=20))
def test_every_element_lies_in_its_bin(xs: list[float]) -> None:
    h = see_histogram(Histogram(), torch.tensor(xs))
    filled = h.counts.nonzero().flatten()
    exponent, bins, zeros = plain(xs)
    assert h.exponent == exponent
    assert dict(zip((filled - BINS).tolist(), h.counts[filled].tolist(), strict=True)) == bins
    assert h.zeros == zeros
    assert h.total == len(xs)
    assert h.ends == Extremes(min(xs), max(xs))


@pytest.mark.parametrize("edge", [2.0**-149, 2.0**-126, 1.0, 2.0**127])
@pytest.mark.parametrize("sign", [1, -1])
def test_powers_of_two_and_their_neighbours_are_held(edge: float, sign: int) -> None:
    for x in (edge, math.nextafter(edge, 0), math.nextafter(edge, math.inf)):
        e = holding(Extremes(min(0, sign * x), max(0, sign * x)))
        assert -BINS <= math.floor(Fraction(sign * x) / Fraction(2) ** e) < BINS
        if e > FINEST:
            assert not -BINS <= math.floor(Fraction(sign * x) / Fraction(2) ** (e - 1)) < BINS, "no smaller exponent does"


@pytest.mark.parametrize("steps", [0, 1, 2, 13, 14, 60, 264])
def test_coarsening_halves_indices_towards_minus_infinity(steps: int) -> None:
    counts = torch.arange(2 * BINS, dtype=torch.int64)
    expected = [0] * (2 * BINS)
    for k in range(-BINS, BINS):
        expected[(k >> steps) + BINS] += int(counts[k + BINS])
    assert coarsened(counts, steps).tolist() == expected


def test_a_large_tensor_is_counted_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    whole = see_histogram(Histogram(), x)
    monkeypatch.setattr("exactq.calibration.histograms._PART", 7)
    assert torch.equal(see_histogram(Histogram(), x).counts, whole.counts)


def test_folding_adds_mirrored_bins() -> None:
    h = see_histogram(Histogram(), torch.tensor([-0.75, 0.8, 0.3, -0.3]))
    folded = h.folded
    assert folded.sum() == 4
    assert folded.nonzero().flatten().tolist() == sorted({int(v / h.width) for v in (0.75 - 1e-9, 0.8, 0.3)})
