"""The divergence beside a loop, and thresholds on distributions whose answer is plain."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from exactq.calibration.entropy import entropy_range, kl_divergence
from exactq.calibration.extremes import Extremes
from exactq.calibration.histograms import Histogram, see_histogram
from exactq.numerics.formats import INT8, INT16, UINT8, Format


def plain(counts: list[int], start: int, stop: int, codes: int) -> float:
    inside = counts[start:stop]
    if not any(inside):
        return math.inf
    p = [float(c) for c in inside]
    p[0] += sum(counts[:start])
    p[-1] += sum(counts[stop:])
    q = [0.0] * len(p)
    for code in range(codes):
        bins = [j for j in range(len(p)) if j * codes // len(p) == code]
        live = [j for j in bins if p[j]]
        for j in live:
            q[j] = sum(inside[i] for i in bins) / len(live)

    def smooth(v: list[float]) -> list[float]:
        empty = sum(x == 0 for x in v)
        taken = min(1e-4 * empty / (len(v) - empty), min(x for x in v if x) / 2)
        given = taken * (len(v) - empty) / max(empty, 1)
        v = [x - taken if x else given for x in v]
        return [x / sum(v) for x in v]

    return sum(a * math.log(a / b) for a, b in zip(smooth(p), smooth(q), strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_the_divergence_is_the_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.poisson([0.3, 5, 50][seed % 3], size=64) * (rng.random(64) < 0.8)
    for start, stop, codes in ((0, 64, 16), (0, 40, 16), (10, 50, 7), (3, 30, 27), (60, 64, 3)):
        expected = plain(counts.tolist(), start, stop, codes)
        assert kl_divergence(counts.astype(float), start, stop, codes) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_nothing_inside_is_infinitely_far() -> None:
    assert kl_divergence(np.array([5.0, 0.0, 0.0, 5.0]), 1, 3, 2) == math.inf


@pytest.mark.parametrize(("fmt", "symmetric"), [(UINT8, False), (INT8, True)])
def test_an_outlier_is_clipped_and_a_flat_distribution_is_not(*, fmt: Format, symmetric: bool) -> None:
    g = torch.Generator().manual_seed(0)
    h = see_histogram(Histogram(), torch.cat([torch.randn(50_000, generator=g), torch.tensor([40.0])]))
    assert 3 < entropy_range(h, fmt, symmetric=symmetric).hi < 20
    flat = see_histogram(Histogram(), torch.rand(200_000, generator=g) * 2 - 1)
    assert entropy_range(flat, fmt, symmetric=symmetric).hi > 0.97


@pytest.mark.parametrize("sign", [1, -1])
def test_one_sided_data_stay_one_sided(sign: int) -> None:
    x = sign * torch.rand(5000, generator=torch.Generator().manual_seed(0))
    ends = entropy_range(see_histogram(Histogram(), x), UINT8, symmetric=False)
    assert (ends.lo if sign > 0 else ends.hi) == 0
    assert ends.hi - ends.lo > 0.9


def test_sixteen_bits_have_nothing_to_gain() -> None:
    h = see_histogram(Histogram(), torch.tensor([-1.0, 0.25, 50.0]))
    assert entropy_range(h, INT16, symmetric=False) == Extremes(-1, 50)
