from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exactq.errors import DataError
from exactq.numerics.formats import INT4, INT8, UINT8, Format, Grid
from exactq.reports.histograms import BINS, histogram, merge


def grid(fmt: Format, scale: float | list[float], zero: int = 0) -> Grid:
    scales = torch.tensor(scale)
    if isinstance(scale, list):
        scales = scales[:, None]
    return Grid(fmt, scales, torch.full(scales.shape, zero, dtype=torch.int32))


@pytest.mark.parametrize("fmt", [UINT8, INT8, INT8.narrow, INT4, INT4.narrow])
def test_each_code_falls_into_the_bin_that_holds_it(fmt: Format) -> None:
    codes = torch.arange(fmt.lo, fmt.hi + 1)
    found = histogram(codes.float(), grid(fmt, 1.0))
    assert len(found.counts) <= BINS
    assert (found.below, found.above) == (0, 0)
    for k, count in enumerate(found.counts):
        first = found.first + k * found.width
        assert count == len(range(first, min(first + found.width, fmt.hi + 1)))


@given(st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=50), st.integers(0, 255))
def test_inside_are_the_reals_that_encode_without_clamping(values: list[float], zero: int) -> None:
    x, placed = torch.tensor(values), grid(UINT8, 1.0, zero)
    found = histogram(x, placed)
    plain = [round(v) + zero for v in x.tolist()]
    assert found.below == sum(code < 0 for code in plain)
    assert found.above == sum(code > 255 for code in plain)
    assert found.counts == tuple(sum(4 * k <= code < 4 * k + 4 for code in plain) for k in range(64))
    assert (found.least, found.most) == (min(x.tolist()), max(x.tolist()))


def test_channels_are_counted_on_their_own_scales() -> None:
    found = histogram(torch.tensor([[7.0, 0.0], [0.07, -0.08]]), grid(INT4, [1.0, 0.01]))
    assert (found.counts[15], found.counts[8], found.counts[0]) == (2, 1, 1)


@given(st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=20), st.data())
def test_the_parts_merge_into_the_whole(values: list[float], data: st.DataObject) -> None:
    cut, placed = data.draw(st.integers(1, len(values) - 1)), grid(INT8, 0.05)
    parts = [histogram(torch.tensor(p), placed) for p in (values[:cut], values[cut:])]
    assert merge(*parts) == merge(*reversed(parts)) == histogram(torch.tensor(values), placed)


def test_histograms_of_two_grids_do_not_merge() -> None:
    x = torch.ones(3)
    with pytest.raises(DataError, match="different grids cannot be merged"):
        merge(histogram(x, grid(INT8, 1.0)), histogram(x, grid(INT4, 1.0)))


@pytest.mark.parametrize("x", [torch.tensor([]), torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf])])
def test_nothing_and_what_is_not_finite_have_no_histogram(x: torch.Tensor) -> None:
    with pytest.raises(DataError, match="finite values, at least one"):
        histogram(x, grid(INT8, 1.0))
