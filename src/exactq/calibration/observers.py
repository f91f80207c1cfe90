"""Observers: what watches an activation during calibration and says which range its grid should span."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from exactq.calibration.entropy import entropy_range
from exactq.calibration.extremes import (
    Averages,
    Extremes,
    mean_extremes,
    merge_averages,
    merge_extremes,
    see_average,
    see_extremes,
)
from exactq.calibration.histograms import Histogram, merge_histograms, see_histogram
from exactq.calibration.mse import mse_range
from exactq.calibration.percentile import percentile_range
from exactq.errors import DataError, UsageError, unknown
from exactq.numerics.formats import Format


@dataclass(frozen=True)
class Observer:
    """Four pure functions over a state that is a value: small, picklable, never changed in place.

    `start()` has seen nothing. `see(state, x)` has also seen the reals `x`, of any shape and float dtype, read as float32; it
    raises `DataError` for NaN and infinity, and an empty tensor changes nothing. `merge(a, b)` is associative and
    commutative, exactly, and equal to the state that saw both one after the other: ranks and workers merge in any order.
    `range(state, fmt, symmetric)` is a finite (lo, hi) with lo ≤ 0 ≤ hi, lo = −hi where `symmetric`; `DataError` if nothing
    was seen. Data that are all zero give (0, 0), for which `quantization.ranges.grid` has a grid; constant data span zero to
    their value.
    """

    start: Callable[[], Any]
    see: Callable[[Any, Tensor], Any]
    merge: Callable[[Any, Any], Any]
    range: Callable[[Any, Format, bool], tuple[float, float]]


def _ends(ends: Extremes, *, symmetric: bool) -> tuple[float, float]:
    lo, hi = min(_seen(ends).lo, 0.0), max(ends.hi, 0.0)
    if symmetric:
        lo, hi = -max(-lo, hi), max(-lo, hi)
    return lo + 0.0, hi + 0.0  # no −0


def _seen(ends: Extremes) -> Extremes:
    if ends.lo > ends.hi:
        raise DataError("nothing was seen: a range needs at least one element")
    return ends


def _of_histogram(choose: Callable[[Histogram, Format, bool], Extremes]) -> Observer:
    return Observer(
        Histogram,
        see_histogram,
        merge_histograms,
        lambda state, fmt, symmetric: _ends(_seen(state.ends) and choose(state, fmt, symmetric), symmetric=symmetric),
    )


def percentile(percent: float) -> Observer:
    """An observer that leaves out the outermost 100 − `percent` percent of the elements (see `percentile_range`)."""
    if not 0 < percent <= 100:
        raise UsageError(f"percentile:{percent:g} keeps nothing or more than all: a percentile lies above 0 and up to 100")
    return _of_histogram(lambda state, fmt, symmetric: percentile_range(state, percent, symmetric=symmetric))


OBSERVERS: dict[str, Observer] = {
    "minmax": Observer(Extremes, see_extremes, merge_extremes, lambda state, fmt, symmetric: _ends(state, symmetric=symmetric)),
    "moving_average": Observer(
        Averages, see_average, merge_averages, lambda state, fmt, symmetric: _ends(mean_extremes(state), symmetric=symmetric)
    ),
    "percentile": percentile(99.99),
    "mse": _of_histogram(lambda state, fmt, symmetric: mse_range(state, fmt, symmetric=symmetric)),
    "entropy": _of_histogram(lambda state, fmt, symmetric: entropy_range(state, fmt, symmetric=symmetric)),
}


def observer_named(name: str) -> Observer:
    """The observer of that name; `percentile:99.9` sets the percentage, which is 99.99 otherwise.

    >>> import torch
    >>> from exactq.numerics.formats import UINT8
    >>> o = observer_named("minmax")
    >>> o.range(o.see(o.start(), torch.tensor([2.0, 5.0])), UINT8, False)  # zero always lies within
    (0.0, 5.0)
    """
    base, colon, parameter = name.partition(":")
    if base not in OBSERVERS:
        raise unknown("observer", name, OBSERVERS)
    if not colon:
        return OBSERVERS[base]
    if base != "percentile":
        raise UsageError(f"observer '{name}': only percentile takes a parameter; write '{base}'")
    try:
        percent = float(parameter)
    except ValueError:
        percent = math.nan
    if math.isnan(percent):
        raise UsageError(f"observer '{name}': '{parameter}' is no number; write percentile:99.9 for example")
    return percentile(percent)
