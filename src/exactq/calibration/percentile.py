"""The range that leaves out the outermost elements: all but a fraction of them, by rank."""

from __future__ import annotations

from fractions import Fraction

import torch

from exactq.calibration.extremes import Extremes
from exactq.calibration.histograms import BINS, Histogram


def percentile_range(histogram: Histogram, percent: float, *, symmetric: bool) -> Extremes:
    """The narrowest range of whole bins, zero included, that leaves out at most 100 − `percent` percent of the elements.

    Symmetric: of the magnitudes. Otherwise half of that share at each end, also for one-sided data (ONNX Runtime's
    `Percentile` does both the same way). Zeros count as elements. Never wider than the data. Where the share to leave out is
    all there is beside zeros, nothing is left out: the remaining range would hold zero alone.
    """
    ends, width = histogram.ends, histogram.width
    share = 1 - Fraction(str(percent)) / 100

    def edge(counts: torch.Tensor, outside: int) -> float:
        beyond = counts.flip(0).cumsum(0).flip(0)  # int64 (BINS,): elements in bin k or further out; falls with k
        return width * int((beyond > outside).sum())

    if symmetric:
        bound = min(edge(histogram.folded, int(histogram.total * share)), max(-ends.lo, ends.hi))
        lo, hi = -bound, bound
    else:
        outside = int(histogram.total * share / 2)
        lo = -min(edge(histogram.counts[:BINS].flip(0), outside), max(-ends.lo, 0.0))
        hi = min(edge(histogram.counts[BINS:], outside), max(ends.hi, 0.0))
    return Extremes(lo, hi) if lo < hi else ends
