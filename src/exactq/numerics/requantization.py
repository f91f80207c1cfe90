"""From an int32 accumulator to a code: multiply by a real factor, round, clamp, add the zero."""

from __future__ import annotations

import torch
from torch import Tensor

from exactq.errors import ModelError
from exactq.numerics.formats import FORMATS, Grid


def requantize_float(acc: Tensor, factor: Tensor, y: Grid) -> Tensor:
    """The codes clamp(rint(fl(float(acc) · factor)) + zero), as float32 holding integers (ONNX Runtime's RequantizeOutput).

    `acc` holds int32 values in any dtype and is rounded to float32 first, ties to even, which loses bits above 2²⁴;
    `factor` is float32 and broadcasts. The clamp comes before rounding, against the ends less the zero; the zero is added after
    it; NaN (0 · inf) gives the lowest code.

    >>> y = Grid(FORMATS["uint8"], torch.tensor(1.0), torch.tensor(10, dtype=torch.int32))
    >>> requantize_float(torch.tensor([1, 3, -99, 999]), torch.tensor(0.5), y)
    tensor([ 10.,  12.,   0., 255.])
    """
    return round_to_codes(acc.to(torch.float32) * factor, y)


def round_to_codes(steps: Tensor, y: Grid) -> Tensor:
    """The codes of `steps` = real / scale, float32 and overwritten: clamped, rounded to even, then the zero added."""
    zero, (lo, hi) = scalar_zero(y), stored_range(y)
    # fmax, unlike clamp, answers the other operand where one is NaN, as maxps does.
    codes = torch.fmax(steps, steps.new_tensor(lo - zero)).clamp_(max=hi - zero).round_()
    return codes.add_(zero) if zero else codes


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
