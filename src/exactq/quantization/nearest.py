"""Weights -> grids: each weight to its nearest code, a scale for the tensor or for each channel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exactq.errors import ModelError
from exactq.numerics.formats import Format, Grid
from exactq.quantization.ranges import grid, middle, reach

_ALL_ZERO = 2.0**-7
_BLOCK = 2**18


def minmax_grid(weight: Tensor, fmt: Format, axis: int | None = None, *, floor: Tensor | None = None) -> Grid:
    """The symmetric grid that reaches the largest magnitude: s = fl(max|w| / reach), one scale or one an index of `axis`.

    The scale's shape is () or (1, …, C, …, 1). `floor`, float32 of one element or C, is the least a scale may be
    (`bias.scale_floor`). Codes are `grid.encode(weight)`.

    A channel of zeros takes the largest scale of the others, a tensor of zeros 2^−7: the codes are 0 with any scale, but the
    bias lives on s_x·s_w, and this keeps its steps as fine as the other channels'. Raises `ModelError` for NaN and infinity,
    naming the channel, and for a tensor without elements.

    >>> from exactq.numerics.formats import INT8
    >>> minmax_grid(torch.tensor([[0.5, -1.27], [0.0, 0.0]]), INT8.narrow, axis=0).scale.flatten()
    tensor([0.0100, 0.0100])
    """
    rows = channels(weight, axis)
    return _grid(weight, fmt, axis, _reaching(rows, fmt), floor)


def mse_grid(weight: Tensor, fmt: Format, axis: int | None = None, *, floor: Tensor | None = None) -> Grid:
    """The symmetric grid of least squared error, clipping included, among scales down to a fifth of `minmax_grid`'s.

    Searched in steps of 2.5 percent, then finer around the best. Shapes, zeros, `floor` and errors as there.
    """
    rows = channels(weight, axis)
    widest = _reaching(rows, fmt)
    one = unit(widest)
    rows, widest = rows / one[:, None], widest / one
    best = lowest_error(rows, widest[:, None] * torch.linspace(1.0, 0.2, 33), fmt)[:, None]
    around = (best * torch.linspace(1.03, 0.97, 13)).minimum(widest[:, None])
    return _grid(weight, fmt, axis, lowest_error(rows, torch.cat([best, around], 1), fmt) * one, floor)


def channels(weight: Tensor, axis: int | None) -> Tensor:
    """`weight` as float32 (C, elements a channel): a row for each index of `axis`, one row in all for None.

    Raises `ModelError` for NaN, infinity, and no elements.
    """
    weight = weight.detach().to(torch.float32)
    rows = weight.reshape(1, -1) if axis is None else weight.movedim(axis, 0).flatten(1)
    if not rows.numel():
        raise ModelError("the weights have no elements: a grid needs at least one")
    if not bool(torch.isfinite(rows).all()):
        channel = int((~torch.isfinite(rows)).any(1).nonzero()[0])
        what = "a NaN" if bool(torch.isnan(rows[channel]).any()) else "an infinity"
        where = f" (channel {channel})" if axis is not None else ""
        raise ModelError(f"{what} among the weights{where}: a grid needs finite values")
    return rows


def steps(rows: Tensor, scale: Tensor, fmt: Format) -> Tensor:
    """code − zero of `Grid.encode` on a symmetric grid, in float32: `scale` (C,) for `rows` (C, …), for up to 16 bits.

    The same true division and rounding; float32 holds the ends of these formats, so clamping needs no float64.
    """
    scale = scale.reshape(-1, *[1] * (rows.ndim - 1))
    return torch.round(rows / scale).clamp(fmt.lo - middle(fmt), fmt.hi - middle(fmt))


def lowest_error(rows: Tensor, candidates: Tensor, fmt: Format, allowed: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """For each row the candidate scale of least squared error, float32 (C,); of equals the first.

    `rows` float32 (C, …), `candidates` float32 (C, R). `allowed`, given a block's steps, says row by row whether they may be
    used; a row with no allowed candidate gets NaN.
    """
    best = torch.empty(rows.shape[0])
    size = max(1, _BLOCK // max(1, rows[0].numel()))  # blocks that stay in cache: each is read once for every candidate
    for start in range(0, rows.shape[0], size):
        block, scales = rows[start : start + size], candidates[start : start + size]
        least, chosen = torch.full((len(block),), torch.inf), torch.full((len(block),), torch.nan)
        for scale in scales.unbind(1):
            codes = steps(block, scale, fmt)
            error = (codes * scale.reshape(-1, *[1] * (block.ndim - 1)) - block).flatten(1).square().sum(1)
            better = error < least
            if allowed is not None:
                better &= allowed(codes)
            least, chosen = torch.where(better, error, least), torch.where(better, scale, chosen)
        best[start : start + size] = chosen
    return best


def unit(scale: Tensor) -> Tensor:
    """The power of two below each scale: out of weights and scale it changes no code, and squared errors stay in range.

    Those of scales near 2^−60 would vanish in float32.
    """
    return torch.exp2(torch.floor(torch.log2(scale)))


def _reaching(rows: Tensor, fmt: Format) -> Tensor:
    most = rows.abs().amax(1)
    bound = torch.where(most > 0, most, most.max() if bool(most.any()) else _ALL_ZERO * reach(fmt))
    return grid(-bound, bound, fmt, symmetric=True).scale


def _grid(weight: Tensor, fmt: Format, axis: int | None, scale: Tensor, floor: Tensor | None) -> Grid:
    if floor is not None:
        scale = torch.maximum(scale, floor.to(torch.float32).flatten())
    shape = [] if axis is None else [1] * weight.ndim
    if axis is not None:
        shape[axis] = weight.shape[axis]
    scale = scale.reshape(shape)
    return Grid(fmt, scale, torch.full_like(scale, middle(fmt), dtype=torch.int32))
