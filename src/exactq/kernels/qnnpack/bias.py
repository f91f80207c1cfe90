"""QNNPACK's bias: int32 codes on the grid of the products, made anew for each scale of the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exactq.kernels.accumulators import channel_scales
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_scale


def pointwise(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether a convolution is a product of matrices to QNNPACK: single pixels, each of them, nothing around the image."""
    return all(n == 1 for n in (*kernel, *stride)) and not any(padding)


def bias_codes(bias: Tensor | None, x: Grid, w: Grid, channels: int, *, saturates: bool) -> Tensor | None:
    """The int32 codes of a real bias, as float64; beyond int32 the last one with `saturates`, else −2³¹ (torch 2.13, measured).

    >>> from exactq.numerics.formats import INT8, UINT8
    >>> one, zero = torch.tensor(1.0), torch.tensor(0, dtype=torch.int32)
    >>> grids = Grid(UINT8, one, zero), Grid(INT8, one, zero)
    >>> [bias_codes(torch.tensor([2.0**31]), *grids, 1, saturates=s).item() for s in (True, False)]
    [2147483647.0, -2147483648.0]
    """
    if bias is None:
        return None
    codes = (bias.to(torch.float32) * (1 / _scale(x, w, channels))).round_().double()
    codes = codes.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    if not saturates:
        codes = codes.masked_fill_(codes >= 2.0**31, -torch.inf)
    return codes.clamp_(-(2.0**31), 2.0**31 - 1)


def bias_steps(bias: Tensor | None, x: Grid, w: Grid, channels: int) -> Tensor | None:
    """A real bias in steps of the products, float32 (channels,), not rounded to integers: what `real_bias` adds."""
    return None if bias is None else bias.to(torch.float32) / _scale(x, w, channels)


def _scale(x: Grid, w: Grid, channels: int) -> Tensor:
    return (channel_scales(w, channels).double() * scalar_scale(x).double()).to(torch.float32)
