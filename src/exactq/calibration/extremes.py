"""Smallest and largest reals: of everything seen, and of the mean batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from exactq.errors import DataError


@dataclass(frozen=True)
class Extremes:
    """The smallest and the largest real seen; (inf, −inf), the identity of min and max, before anything was."""

    lo: float = math.inf
    hi: float = -math.inf


@dataclass(frozen=True)
class Averages:
    """The number of batches and the exact sums of their minima and maxima.

    Sums of float32 are integers in units of 2^−149, so they are kept exactly, and no order of adding them differs.
    """

    batches: int = 0
    lows: Fraction = Fraction(0)
    highs: Fraction = Fraction(0)


def extremes(x: Tensor) -> Extremes:
    """The extremes of one tensor in float32; −0 counts as 0. Raises `DataError` for NaN and infinity, counting both.

    >>> extremes(torch.tensor([3.0, -1.0])), extremes(torch.empty(0))
    (Extremes(lo=-1.0, hi=3.0), Extremes(lo=inf, hi=-inf))
    """
    if x.numel() == 0:
        return Extremes()
    lo, hi = (end.item() for end in torch.aminmax(x.detach().to(torch.float32)))
    if not (math.isfinite(lo) and math.isfinite(hi)):  # aminmax passes NaN on
        nan, inf = int(torch.isnan(x).sum()), int(torch.isinf(x.to(torch.float32)).sum())
        raise DataError(f"{nan} NaN and {inf} infinite among {x.numel()} elements: a range needs finite values")
    return Extremes(lo + 0.0, hi + 0.0)


def see_extremes(state: Extremes, x: Tensor) -> Extremes:
    """`state` widened by one batch."""
    return merge_extremes(state, extremes(x))


def merge_extremes(a: Extremes, b: Extremes) -> Extremes:
    """The extremes of both."""
    return Extremes(min(a.lo, b.lo), max(a.hi, b.hi))


def see_average(state: Averages, x: Tensor) -> Averages:
    """`state` with one more batch; every batch weighs the same, however many elements it has, and an empty one nothing."""
    if x.numel() == 0:
        return state
    batch = extremes(x)
    return merge_averages(state, Averages(1, Fraction(batch.lo), Fraction(batch.hi)))


def merge_averages(a: Averages, b: Averages) -> Averages:
    """The averages of both runs, each batch weighing the same."""
    return Averages(a.batches + b.batches, a.lows + b.lows, a.highs + b.highs)


def mean_extremes(state: Averages) -> Extremes:
    """The mean of the batches' minima and that of their maxima.

    This is ONNX Runtime's `moving_average=True`, which despite its name is a plain mean. PyTorch's observer of that name
    decays exponentially, which depends on the order of batches, so ranks could not merge theirs.
    """
    if not state.batches:
        return Extremes()
    return Extremes(float(state.lows / state.batches), float(state.highs / state.batches))
