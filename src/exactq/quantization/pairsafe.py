"""Weight grids with which no int16 pair can saturate, whatever the input.

The kernels of AVX2 without VNNI add neighbouring products in int16, and saturate unless every pair of codes satisfies the
certificate of `kernels.pairs`: the same-signed codes of a pair sum to at most 128. A single 127 is allowed: far weaker
than 7-bit weights (|w| ≤ 64), and free at run time. Here only scales change: a channel that violates it gets a larger one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from exactq.errors import ModelError
from exactq.kernels.pairs import PAIR_LIMIT, kernel_order, pair_sums
from exactq.numerics.formats import Grid
from exactq.quantization.nearest import lowest_error, unit


def depthwise(weight: Tensor, groups: int) -> bool:
    """Whether each group has one input and one output channel: such kernels multiply alone and never saturate."""
    return groups > 1 and weight.shape[1] == 1 and weight.shape[0] == groups


def pairsafe_grid(weight: Tensor, grid: Grid, *, groups: int = 1) -> Grid:
    """`grid` with the scales of violating channels raised until `grid.encode(weight)` satisfies the certificate.

    `weight` float (O, I/groups, …), `grid` symmetric, signed, of up to 8 bits, with one scale or one a channel of axis 0.
    Channels that satisfy it already, and depthwise layers, keep their scales. The others get, of some 65 scales between theirs
    and the one that leaves 7-bit codes, the safe one of least squared error. That is not the smallest safe one: rounding makes
    safety come and go as the scale rises.

    Candidates are judged by float32 codes equal to those of `encode`: judged in float64, a pair once rounded to 129 after all.
    """
    if not grid.format.signed or grid.format.bits > 8 or bool(grid.zero.any()):
        raise ModelError(f"{grid!r}: pairs are certified for signed weights of up to 8 bits with zero 0")
    if grid.scale.numel() > 1 and grid.scale.shape[0] != grid.scale.numel():
        raise ModelError(f"scales of shape {tuple(grid.scale.shape)}: pairs are certified for a scale a channel of axis 0")
    if depthwise(weight, groups):
        return grid
    rows = kernel_order(weight.detach().to(torch.float32))
    if grid.scale.numel() == 1:
        rows = F.pad(rows, (0, rows.shape[1] % 2)).reshape(1, -1)
    scale = grid.scale.flatten().clone()
    codes = grid.format, scale[:, None], grid.zero.reshape(-1, 1)
    wrong = (~certified(Grid(*codes).encode(rows))).nonzero().flatten()
    if len(wrong):
        scale[wrong] = _raised(rows[wrong], scale[wrong], grid)
    return Grid(grid.format, scale.reshape(grid.scale.shape), grid.zero)


def certified(codes: Tensor) -> Tensor:
    """Whether each row (O, K) of signed codes, in kernel order and any dtype, satisfies the certificate: bool (O,).

    >>> certified(torch.tensor([[127, 1, -1, -127], [127, 2, 0, 0]], dtype=torch.int8))
    tensor([ True, False])
    """
    return (pair_sums(codes) <= PAIR_LIMIT).all(1)


def _raised(rows: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    one = unit(scale)
    rows, scale = rows / one[:, None], scale / one
    top = (rows.abs().amax(1) / (PAIR_LIMIT // 2)).maximum(scale)  # leaves codes up to 64: there is always a safe candidate
    coarse = torch.cat([scale[:, None] + (top - scale)[:, None] * torch.linspace(0, 1, 33)[:-1], top[:, None]], 1)
    best = lowest_error(rows, coarse, grid.format, certified)[:, None]
    around = best + (top - scale)[:, None] / 32 * torch.linspace(-1, 0.5, 32)
    return (
        lowest_error(rows, torch.cat([best, around.maximum(scale[:, None]).minimum(top[:, None])], 1), grid.format, certified)
        * one
    )
