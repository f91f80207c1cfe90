"""Reals counted on the codes of their own grid, so that a histogram shows what the grid makes of them.

A real x falls on the code round(x / scale) + zero before it is clamped: bins hold whole codes, so no bin covers a code more
than its neighbour, and what is clamped is counted apart. Channels with scales of their own share one axis this way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from exactq.errors import DataError
from exactq.graphs.programs import program
from exactq.numerics.formats import Grid, expand
from exactq.quantized import Quantized
from exactq.reports.facts import Histogram
from exactq.traces import Step, walk

BINS = 64


def histogram(x: Tensor, grid: Grid) -> Histogram:
    """The reals of `x` on the codes of `grid`, in at most `BINS` bins of equally many codes (the last may hold fewer).

    Raises `DataError` for no element and for reals that are not finite.

    >>> from exactq.numerics.formats import UINT8
    >>> halves = Grid(UINT8, torch.tensor(0.5), torch.tensor(0, dtype=torch.int32))
    >>> found = histogram(torch.tensor([-1.0, 0.0, 0.5, 3.5]), halves)
    >>> found.width, found.counts[:3], found.below
    (4, (2, 1, 0), 1)
    """
    if not x.numel() or not bool(torch.isfinite(x).all()):
        raise DataError(f"a histogram needs finite values, at least one; {x.numel()} were given")
    fmt = grid.format
    steps = torch.round(x.float() / expand(grid.scale, x.shape)).double() + expand(grid.zero, x.shape)
    below, above = steps < fmt.lo, steps > fmt.hi
    codes = fmt.hi - fmt.lo + 1
    width = -(-codes // BINS)
    bins = ((steps[~(below | above)] - fmt.lo) // width).long()
    counts = torch.bincount(bins, minlength=-(-codes // width))
    ends = torch.aminmax(x.float())
    return Histogram(
        fmt.lo, width, tuple(counts.tolist()), int(below.sum()), int(above.sum()), float(ends.min), float(ends.max)
    )


def merge(a: Histogram, b: Histogram) -> Histogram:
    """The histogram of all that both counted; both are of one grid."""
    if (a.first, a.width, len(a.counts)) != (b.first, b.width, len(b.counts)):
        raise DataError("histograms of different grids cannot be merged")
    return replace(
        a,
        counts=tuple(x + y for x, y in zip(a.counts, b.counts, strict=True)),
        below=a.below + b.below,
        above=a.above + b.above,
        least=min(a.least, b.least),
        most=max(a.most, b.most),
    )


def activation_histograms(quantized: Quantized, batches: Iterable[Sequence[Tensor]]) -> Mapping[str, Histogram]:
    """Value name -> the float model's activations on the codes of the grid that each got, over all batches."""
    grids = quantized.grids
    steps = program(quantized.float_graph)
    found: dict[str, Histogram] = {}

    def see(name: str, value: Tensor) -> None:
        if name in grids and grids[name].scale.numel() == 1:
            new = histogram(value, grids[name])
            found[name] = merge(found[name], new) if name in found else new

    def see_step(step: Step, value: Tensor) -> None:
        see(step.name, value)

    with torch.no_grad():
        for batch in batches:
            for name, value in zip(steps.inputs, batch, strict=True):
                see(name, value)
            walk(steps, batch, see_step)
    return found
