"""The range whose grid loses least: smallest expected squared difference of a real and its code, clipping and rounding both.

Banner, Nahshan, Soudry 2019 (Post training 4-bit quantization of convolutional networks, arXiv:1810.05723) weigh the two
errors with a model of the density; here the histogram is the density.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exactq.calibration.extremes import Extremes
from exactq.calibration.histograms import BINS, Histogram
from exactq.numerics.formats import Format

_COARSE = torch.exp2(-torch.arange(0, 10, 1 / 8, dtype=torch.float64))
_FINE = torch.exp2(torch.linspace(-1 / 8, 1 / 8, 17, dtype=torch.float64))


def mse_range(histogram: Histogram, fmt: Format, *, symmetric: bool) -> Extremes:
    """The range with the smallest `squared_error` among some hundred that shrink the data's own by up to 2^−10.

    First both ends together, then each alone, then each again in finer steps. The data's own range is among them, so none is
    taken that loses more.
    """
    ends = histogram.ends
    lo, hi = min(ends.lo, 0.0), max(ends.hi, 0.0)
    if symmetric:
        lo, hi = -max(-lo, hi), max(-lo, hi)
    if lo == hi:
        return Extremes(lo, hi)
    none, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    together, upper, lower = (one, one), (none, one), (one, none)
    if symmetric or lo == 0 or hi == 0:
        stages = [(together, _COARSE), (together, _FINE)]
    else:
        stages = [(together, _COARSE), *((side, ratios) for ratios in (_COARSE, _FINE) for side in (upper, lower))]
    a, b = torch.tensor([lo], dtype=torch.float64), torch.tensor([hi], dtype=torch.float64)
    for (low, high), ratios in stages:
        # The range so far comes first and argmin takes the first of equals: a tie moves nothing.
        ratios = torch.cat([one, ratios])
        lows, highs = (a * (1 + low * (ratios - 1))).clamp(min=lo), (b * (1 + high * (ratios - 1))).clamp(max=hi)
        best = squared_error(histogram, lows, highs, fmt, symmetric=symmetric).argmin()
        a, b = lows[best, None], highs[best, None]
    return Extremes(a.item(), b.item())


def squared_error(histogram: Histogram, lo: Tensor, hi: Tensor, fmt: Format, *, symmetric: bool) -> Tensor:
    """The summed squared error of each candidate range, float64 (candidates,), in the grid's real arithmetic.

    `lo` ≤ 0 ≤ `hi`, float64 (candidates,), not both zero; symmetric takes `hi` alone. Every element counts as its bin's
    centre, so a step finer than a bin is not resolved; clipping is, and there it decides.
    """
    filled = histogram.counts.nonzero().squeeze(1)
    reals = ((filled - BINS).double() + 0.5) * histogram.width
    reals, counts = reals.clamp(histogram.ends.lo, histogram.ends.hi), histogram.counts[filled].double()
    if symmetric:
        middle = (fmt.lo + fmt.hi + 1) // 2
        step = hi / min(fmt.hi - middle, middle - fmt.lo)
        first, last = torch.full_like(hi, fmt.lo - middle), torch.full_like(hi, fmt.hi - middle)
    else:
        step = (hi - lo) / (fmt.hi - fmt.lo)
        first = torch.round(lo / step)
        last = first + (fmt.hi - fmt.lo)
    step, first, last = step[:, None], first[:, None], last[:, None]
    steps = torch.minimum(torch.maximum(torch.round(reals / step), first), last)  # (candidates, filled bins)
    return (steps * step - reals).square() @ counts
