"""From an int32 accumulator to a code: multiply by a real factor, round, clamp, add the zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exactq.errors import ModelError
from exactq.numerics.formats import FORMATS, Grid


def requantization(factor: Tensor, y: Grid) -> Callable[[Tensor], Tensor]:
    """The function acc -> clamp(rint(fl(float(acc) · factor)) + zero), float32 holding integers (MLAS RequantizeOutput).

    `acc` holds int32 values in any dtype and is rounded to float32 first, ties to even, which loses bits above 2²⁴;
    `factor` is float32 and broadcasts. The clamp comes before rounding, against the ends less the zero; the zero is added after
    it; NaN (0 · inf) gives the lowest code.

    >>> from exactq.numerics.formats import UINT8
    >>> y = Grid(UINT8, torch.tensor(1.0), torch.tensor(10, dtype=torch.int32))
    >>> requantization(torch.tensor(0.5), y)(torch.tensor([1, 3, -99, 999]))
    tensor([ 10.,  12.,   0., 255.])
    """
    finish = rounding_to_codes(y, nan=not bool(torch.isfinite(factor).all()))
    return lambda acc: finish(acc.to(torch.float32) * factor.to(acc.device))


def rounding_to_codes(y: Grid, *, nan: bool) -> Callable[[Tensor], Tensor]:
    """The function from steps (real / scale, float32, overwritten) to codes: clamped, rounded to even, then the zero added.

    Infinite steps give the end codes, and NaN the lowest one as maxps has it; without `nan` none is looked for.
    """
    zero, (lo, hi) = scalar_zero(y), stored_range(y)

    def finish(steps: Tensor) -> Tensor:
        steps = steps.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf) if nan else steps
        codes = steps.clamp_(lo - zero, hi - zero).round_()
        return codes.add_(zero) if zero else codes

    return finish


def packing_to_codes(y: Grid, *, relu: bool = False) -> Callable[[Tensor], Tensor]:
    """The function from steps (float32) to codes as x86 kernels go: CVTPS2DQ, PACKSSDW, PADDSW of the zero, PACKUSWB.

    Rounds to even before the zero is added. From 2³¹ on, and for NaN, CVTPS2DQ gives −2³¹, and so the lowest code. With `relu`
    the lowest code is the zero's own.

    >>> from exactq.numerics.formats import UINT8
    >>> y = Grid(UINT8, torch.tensor(1.0), torch.tensor(10, dtype=torch.int32))
    >>> packing_to_codes(y)(torch.tensor([0.5, 300.0, 2.0**31]))
    tensor([ 10., 255.,   0.])
    """
    zero, (lo, hi) = scalar_zero(y), stored_range(y)
    lo = zero if relu else lo

    def finish(steps: Tensor) -> Tensor:
        steps = steps.masked_fill_(~(steps < 2.0**31), -torch.inf)
        return steps.round_().clamp_(lo - zero, hi - zero).add_(zero)

    return finish


def stored(grid: Grid) -> Grid:
    """The grid with every code that its storage holds: `uint8` of a grid that uses 0..15 of it."""
    return Grid(FORMATS[grid.format.name], grid.scale, grid.zero)


def stored_range(grid: Grid) -> tuple[int, int]:
    """The lowest and highest code that the format's storage holds: runtimes clamp to it and know no narrower range.

    Raises `ModelError` for an output grid that is narrower than its storage.
    """
    full = FORMATS.get(grid.format.name)
    if full != grid.format:
        raise ModelError(
            f"{grid.format!r} is narrower than its storage: a runtime clamps outputs to all of it, so use {full!r}"
        )
    return full.lo, full.hi


def scalar_zero(grid: Grid) -> int:
    """The zero of a per-tensor grid as a number. Raises `ModelError` for one that differs along an axis."""
    if grid.zero.numel() != 1:
        raise ModelError(f"an activation needs one scale and zero for the whole tensor, not {tuple(grid.zero.shape)}")
    return int(grid.zero)


def scalar_scale(grid: Grid) -> Tensor:
    """The scale of a per-tensor grid, float32 without dimensions. Raises `ModelError` for one that differs along an axis."""
    scalar_zero(grid)
    return grid.scale.reshape(())
