"""The grid that PyTorch's dynamic operators lay over a tensor when they see it: fbgemm::ChooseQuantizationParams.

lo = min(min x, 0), hi = max(max x, 0), s = (hi − lo) / (qhi − qlo) in float64, 0.1 where that is 0 or 1/s is infinite, and at
least 6.1e-5, the range growing with it; z = rint(q − end / s) at the end whose error is smaller (fbgemm src/QuantUtils.cc).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from exactq.numerics.formats import UINT8, Grid

_SMALL = np.float32(6.1e-5)


def dynamic_grid(x: Tensor, *, reduce_range: bool = False) -> Grid:
    """The uint8 grid for these reals; with `reduce_range` its last code is 127 in their range."""
    scale, zero = dynamic_scale(x, reduce_range=reduce_range)
    return Grid(UINT8, torch.tensor(scale, dtype=torch.float32), torch.tensor(zero, dtype=torch.int32))


def dynamic_scale(x: Tensor, *, reduce_range: bool = False) -> tuple[float, int]:
    """The scale before it is rounded to float32, and the zero.

    >>> dynamic_scale(torch.tensor([-1.0, 3.0]))
    (0.01568627450980392, 64)
    """
    f32, f64 = np.float32, np.float64
    top = 127 if reduce_range else 255
    lo, hi = (f32(v) for v in (min(float(x.min()), 0.0), max(float(x.max()), 0.0))) if x.numel() else (f32(0), f32(0))
    scale = (f64(hi) - f64(lo)) / top
    with np.errstate(divide="ignore", over="ignore"):
        if f32(scale) == 0 or np.isinf(f32(1) / f32(scale)):
            scale = f64(0.1)
    if scale < _SMALL:
        given, scale = f32(scale), f64(_SMALL)
        if lo == 0:
            hi = f32(_SMALL * f32(top))
        elif hi == 0:
            lo = f32(-_SMALL * f32(top))
        else:
            lo, hi = f32(lo * (_SMALL / given)), f32(hi * (_SMALL / given))
    at_lo, at_hi = -f64(lo) / scale, top - f64(hi) / scale
    zero = at_lo if abs(f64(lo) / scale) < top + abs(f64(hi) / scale) else at_hi
    return float(scale), int(np.clip(np.rint(zero), 0, top))
