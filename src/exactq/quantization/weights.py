"""How weights get their grids, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from exactq.errors import ModelError, unknown
from exactq.kernels import onednn
from exactq.numerics.formats import Format, Grid
from exactq.quantization.nearest import minmax_grid, mse_grid
from exactq.quantization.pairsafe import pairsafe_grid


def _pairsafe(weight: Tensor, fmt: Format, axis: int | None, groups: int, floor: Tensor | None) -> Grid:
    if axis not in (0, None):
        raise ModelError(f"one scale for each index of axis {axis}: pairs are certified for output channels in axis 0")
    return pairsafe_grid(weight, minmax_grid(weight, fmt, axis, floor=floor), groups=groups)


def _pairsafe_taps(weight: Tensor, fmt: Format, axis: int | None, groups: int, floor: Tensor | None) -> Grid:
    grid = minmax_grid(weight, fmt, axis, floor=floor)
    return pairsafe_grid(onednn.paired(weight), grid, groups=1)


WEIGHT_OBSERVERS: dict[str, Callable[[Tensor, Format, int | None, int, Tensor | None], Grid]] = {
    "minmax": lambda weight, fmt, axis, groups, floor: minmax_grid(weight, fmt, axis, floor=floor),
    "mse": lambda weight, fmt, axis, groups, floor: mse_grid(weight, fmt, axis, floor=floor),
    "pairsafe": _pairsafe,
    "pairsafe-depthwise": lambda weight, fmt, axis, groups, floor: _pairsafe(weight, fmt, axis, 1, floor),
    "pairsafe-taps": _pairsafe_taps,
}
"""Observer -> the grid of a weight. The pairs that saturate differ: `pairsafe` is of MLAS, whose depthwise kernels are exact,
`pairsafe-depthwise` of FBGEMM, whose are not, `pairsafe-taps` of oneDNN, which pairs the channels of each tap alone."""


def weight_grid(
    weight: Tensor,
    fmt: Format,
    axis: int | None = None,
    *,
    observer: str = "minmax",
    groups: int = 1,
    floor: Tensor | None = None,
) -> Grid:
    """The symmetric grid of a weight tensor that `observer` chooses; codes are `grid.encode(weight)`.

    One scale, or one for each index of `axis`, shaped (1, …, C, …, 1); no scale is below `floor`, float32 of one element or C.
    `groups` are those of the layer: `pairsafe` lets depthwise ones be. Raises `ModelError` for weights that are not finite,
    `UsageError` for an unknown observer.
    """
    if observer not in WEIGHT_OBSERVERS:
        raise unknown("weight observer", observer, WEIGHT_OBSERVERS)
    return WEIGHT_OBSERVERS[observer](weight, fmt, axis, groups, floor)
