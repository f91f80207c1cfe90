"""The range whose codes say most about the data: smallest Kullback–Leibler divergence of the coded distribution.

Migacz 2017 (8-bit inference with TensorRT, GTC s7310), as ONNX Runtime's `Entropy` and TensorRT's calibrators compute it:
for each threshold, P is the histogram with what lies beyond added to its outermost bins; Q is the histogram inside, its bins
merged to as many as there are codes and spread evenly over those bins in which P is not empty; the threshold with the least
Σ P·log(P/Q) wins.

Three things are ours. Exact zeros take no part (TensorRT drops the zero bin: every grid holds zero). Bin j of m goes to code
⌊j·codes/m⌋, where ONNX Runtime leaves the remainder of m/codes to the last code. Among equals the widest range wins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from exactq.calibration.extremes import Extremes
from exactq.calibration.histograms import BINS, Histogram, coarsened
from exactq.numerics.formats import Format

_COARSER = 2
"""Bins are merged 4 to 1, to the 2,048 a side that TensorRT uses."""
_STRIDE = 8
_EPSILON = 1e-4
"""What an empty bin counts, taken evenly from the others (ONNX Runtime's smooth_distribution)."""


def entropy_range(histogram: Histogram, fmt: Format, *, symmetric: bool) -> Extremes:
    """The range of least divergence among thresholds t, each meaning [−t, t] cut to the data (symmetric: not cut).

    A format with more codes than there are bins in the data's range has nothing to gain from clipping: its range is the data's.
    """
    ends, width = histogram.ends, histogram.width * 2**_COARSER
    folded = symmetric or ends.lo >= 0 or ends.hi <= 0
    counts = coarsened(histogram.counts, _COARSER)
    both = (counts[BINS:] + counts[:BINS].flip(0) if folded else counts).numpy().astype(np.float64)
    middle = 0 if folded else BINS
    filled = np.flatnonzero(both)
    if not filled.size:
        return ends
    first, last = 0 if folded else int(filled[0]), int(filled[-1]) + 1
    codes = fmt.hi - (fmt.lo + fmt.hi + 1) // 2 + 1 if symmetric else fmt.hi - fmt.lo + 1
    best, threshold = np.inf, 0
    for t in range(max(middle - first, last - middle), 0, -_STRIDE):
        start, stop = max(middle - t, first), min(middle + t, last)
        if stop - start < codes:
            break
        divergence = kl_divergence(both[first:last], start - first, stop - first, codes)
        if divergence < best:
            best, threshold = divergence, t
    bound = threshold * width if threshold else max(-ends.lo, ends.hi)
    if symmetric:
        bound = min(bound, max(-ends.lo, ends.hi))
        return Extremes(-bound, bound)
    return Extremes(max(-bound, min(ends.lo, 0.0)), min(bound, max(ends.hi, 0.0)))


def kl_divergence(counts: npt.NDArray[np.float64], start: int, stop: int, codes: int) -> float:
    """The divergence, in nats, of `counts` clipped to bins [start, stop) from the same merged to `codes` codes.

    Infinite where nothing lies inside.
    """
    inside = counts[start:stop]
    p = inside.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    code = np.arange(inside.size) * codes // inside.size
    sums, live = np.bincount(code, inside), np.bincount(code, p > 0)
    q = np.where(p > 0, (sums / np.maximum(live, 1))[code], 0.0)
    if not inside.any():
        return float("inf")
    p, q = _smooth(p), _smooth(q)
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _smooth(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    empty = counts == 0
    # With more than 1/ε times as many empty bins as filled ones counts would turn negative: take at most half a count.
    taken = min(_EPSILON * empty.sum() / max((~empty).sum(), 1), 0.5 * counts[~empty].min())
    given = taken * (~empty).sum() / max(empty.sum(), 1)
    smooth: npt.NDArray[np.float64] = np.where(empty, given, counts - taken)
    return smooth
