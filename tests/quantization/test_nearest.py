"""Nearest grids: the scale's arithmetic, and a search that never does worse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exactq.numerics.formats import INT3, INT4, INT8, INT16, UINT8, Format, Grid
from exactq.quantization.nearest import lowest_error, minmax_grid, mse_grid, steps
from exactq.quantization.ranges import middle, reach


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fmt", [INT8.narrow, INT8, INT4, UINT8, INT16])
@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_the_scale_is_the_largest_magnitude_over_the_reach(fmt: Format, axis: int | None) -> None:
    w = normal(4, 3, 5)
    g = minmax_grid(w, fmt, axis)
    for i in range(1 if axis is None else w.shape[axis]):
        part = w if axis is None else w.select(axis, i)
        assert g.scale.flatten()[i].item() == np.float32(part.abs().max().item()) / np.float32(reach(fmt))
    codes = g.encode(w).to(torch.int64) - middle(fmt)
    assert codes.abs().max() == reach(fmt)
    assert bool(((g.decode(g.encode(w)) - w).abs() <= g.scale.expand(w.shape) * (0.5 + 2**-7)).all())


@pytest.mark.parametrize("fmt", [INT3, INT4.narrow, INT4, INT8.narrow, UINT8])
@pytest.mark.parametrize("axis", [0, None])
def test_the_search_loses_no_more_than_minmax_in_any_channel(fmt: Format, axis: int | None) -> None:
    w = normal(16, 200) ** 3
    grids = [f(w, fmt, axis) for f in (mse_grid, minmax_grid)]
    least, plain = (((g.decode(g.encode(w)) - w) ** 2).sum(1) for g in grids)
    if axis is None:
        assert least.sum() <= plain.sum()
    else:
        assert bool((least <= plain * (1 + 1e-5)).all())
    assert bool((grids[0].scale <= grids[1].scale).all())


def test_four_bit_gaussian_weights_gain_a_decibel() -> None:
    w = normal(64, 576)
    noise = [((g.decode(g.encode(w)) - w) ** 2).sum() for g in (mse_grid(w, INT4, 0), minmax_grid(w, INT4, 0))]
    assert noise[1] / noise[0] > 10 ** (1.5 / 10)  # 19.3 against 17.2 dB


@given(
    st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=20),
    st.floats(2.0**-60, 2.0**60, width=32),
    st.sampled_from([INT8, INT8.narrow, UINT8, INT4, INT16]),
)
def test_steps_are_the_codes_that_encode_makes(x: list[float], scale: float, fmt: Format) -> None:
    s = torch.tensor([scale])
    # Ties too: odd multiples of half a step.
    rows = torch.cat([torch.tensor(x), (torch.arange(-9, 10) + 0.5) * s])[None]
    grid = Grid(fmt, s[:, None], torch.full((1, 1), middle(fmt), dtype=torch.int32))
    assert torch.equal(steps(rows, s, fmt), (grid.encode(rows).to(torch.int64) - middle(fmt)).float())


def test_the_lowest_error_is_found_in_every_block_and_the_first_of_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, candidates = normal(7, 30), normal(7, 9, seed=1).abs() / 50 + 0.01
    best = lowest_error(rows, candidates, INT8)
    for row, scales, chosen in zip(rows, candidates, best, strict=True):
        errors = [((steps(row[None], s[None], INT8)[0] * s - row) ** 2).sum().item() for s in scales]
        assert chosen == scales[errors.index(min(errors))]
    monkeypatch.setattr("exactq.quantization.nearest._BLOCK", 61)
    assert torch.equal(lowest_error(rows, candidates, INT8), best)
    assert bool(lowest_error(rows, candidates, INT8, lambda codes: torch.zeros(len(codes), dtype=torch.bool)).isnan().all())
