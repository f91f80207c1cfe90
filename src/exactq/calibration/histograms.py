"""Histograms that grow exactly: the result depends on the elements seen, never on their order or on how they were split.

Bin k of width 2^e counts the reals in [k·2^e, (k+1)·2^e), k from −BINS to BINS−1. Edges are multiples of a power of two and
one edge is zero, so two neighbours of width 2^e are exactly one bin of width 2^(e+1): k goes to ⌊k/2⌋, and
⌊⌊x/2^e⌋/2⌋ = ⌊x/2^(e+1)⌋. The exponent is the smallest that holds all elements seen, thus a function of their extremes;
counts are integers. Hence `merge` is associative and commutative to the last bit and no element is ever re-binned by guess.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exactq.calibration.extremes import Extremes, extremes, merge_extremes

BINS = 2**13
"""Bins on each side of zero; the larger extreme fills at least half of its side: 16 bins a code of an 8-bit grid, or more."""
FINEST = -149
"""The exponent of the smallest float32: a bin of its own for each real, and where a histogram of zeros starts."""
_PART = 2**17
"""Elements that are counted at once: what is made of them stays in the cache, twice as fast as 2^20 and a megabyte small."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts, int64 (2·BINS,), of bins 2^`exponent` wide; exact zeros apart, since every grid holds zero exactly."""

    exponent: int = FINEST
    counts: Tensor = field(default_factory=lambda: torch.zeros(2 * BINS, dtype=torch.int64))
    zeros: int = 0
    ends: Extremes = Extremes()

    @property
    def total(self) -> int:
        """How many elements were seen."""
        return self.zeros + int(self.counts.sum())

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def folded(self) -> Tensor:
        """Counts of magnitudes, int64 (BINS,): bin k holds |x| of bins k and −1−k."""
        return self.counts[BINS:] + self.counts[:BINS].flip(0)


def see_histogram(state: Histogram, x: Tensor) -> Histogram:
    """`state` with one batch counted, in float32. Raises `DataError` for NaN and infinity."""
    ends = merge_extremes(state.ends, extremes(x))
    exponent = holding(ends)
    counts, zeros = coarsened(state.counts, exponent - state.exponent), state.zeros
    for part in torch.split(x.detach().reshape(-1), _PART):
        part = part.to(torch.float32)
        # In float64 the product is exact: float32 would lose subnormals, and with them the sign that floor needs.
        bins = part.double().mul_(math.ldexp(1.0, -exponent)).floor_().long().add_(BINS)
        counts = counts + torch.bincount(bins, minlength=2 * BINS).cpu()
        zeros += int((part == 0).sum())
    counts[BINS] -= zeros - state.zeros
    return Histogram(exponent, counts, zeros, ends)


def merge_histograms(a: Histogram, b: Histogram) -> Histogram:
    """The histogram of all elements of both, equal to the one that had seen them all."""
    ends = merge_extremes(a.ends, b.ends)
    exponent = holding(ends)
    counts = coarsened(a.counts, exponent - a.exponent) + coarsened(b.counts, exponent - b.exponent)
    return Histogram(exponent, counts, a.zeros + b.zeros, ends)


def holding(ends: Extremes) -> int:
    """The smallest exponent e, at least `FINEST`, with −BINS·2^e ≤ lo and hi < BINS·2^e.

    >>> holding(Extremes(-1.0, 0.5)), holding(Extremes(0.0, 1.0))  # -1 opens the lowest bin, +1 lies beyond the highest
    (-13, -12)
    """
    exponent = FINEST
    if ends.lo < 0:
        fraction, power = math.frexp(-ends.lo)  # [0.5, 1) · 2^power
        exponent = max(exponent, power - (fraction == 0.5) - BINS.bit_length() + 1)
    if ends.hi > 0:
        exponent = max(exponent, math.frexp(ends.hi)[1] - BINS.bit_length() + 1)
    return exponent


def coarsened(counts: Tensor, steps: int) -> Tensor:
    """New counts, of the same shape, with 2^steps neighbouring bins in one."""
    bins = torch.arange(-BINS, BINS) >> min(steps, BINS.bit_length())  # far enough for −1 and 0, and a shift C defines
    return torch.zeros_like(counts).index_add_(0, bins + BINS, counts)
