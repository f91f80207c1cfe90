"""Requantization beside its definition in Python numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exactq.errors import ModelError
from exactq.numerics.formats import INT8, INT16, UINT8, Format, Grid
from exactq.numerics.requantization import requantization, rounding_to_codes, scalar_scale, scalar_zero, stored_range


def grid(fmt: Format, zero: int) -> Grid:
    return Grid(fmt, torch.tensor(1.0), torch.tensor(zero, dtype=torch.int32))


def plain(acc: int, factor: float, zero: int, fmt: Format) -> int:
    """clamp(round-half-even(fl(fl(acc) · factor)) + zero): clamping before or after the zero is the same in exact integers."""
    with np.errstate(over="ignore"):
        steps = float(np.float32(acc) * np.float32(factor))
    if abs(steps) == float("inf"):
        return fmt.hi if steps > 0 else fmt.lo
    return min(max(round(Fraction(steps)) + zero, fmt.lo), fmt.hi)


int32 = st.integers(-(2**31), 2**31 - 1)


@given(
    st.lists(st.one_of(int32, st.integers(-600, 600)), min_size=1, max_size=20),
    st.one_of(st.floats(2.0**-30, 2.0**30, width=32), st.sampled_from([0.5, 0.25, 2.0**-20, 1e38])),
    st.sampled_from([UINT8, INT8, INT16]),
    st.integers(0, 2**16),
)
def test_requantization_is_the_plain_definition(accs: list[int], factor: float, fmt: Format, seed: int) -> None:
    zero = fmt.lo + seed % (fmt.hi - fmt.lo + 1)
    run = requantization(torch.tensor(factor), grid(fmt, zero))
    expected = [plain(acc, factor, zero, fmt) for acc in accs]
    for dtype in (torch.int32, torch.float64):
        codes = run(torch.tensor(accs, dtype=dtype))
        assert codes.dtype == torch.float32
        assert codes.tolist() == expected


def test_a_factor_for_each_channel_and_accumulators_stay() -> None:
    acc = torch.tensor([[3.0, 3.0], [5.0, 5.0]])
    assert requantization(torch.tensor([0.5, 1.0]), grid(UINT8, 1))(acc).tolist() == [[3.0, 4.0], [3.0, 6.0]]
    assert acc.tolist() == [[3.0, 3.0], [5.0, 5.0]]


def test_an_infinite_factor_sends_zero_to_the_lowest_code() -> None:
    run = requantization(torch.tensor(torch.inf), grid(INT8, 4))
    assert run(torch.tensor([-1, 0, 1])).tolist() == [-128.0, -128.0, 127.0]


def test_steps_round_to_even_before_the_zero_is_added() -> None:
    finish = rounding_to_codes(grid(UINT8, 3), nan=True)
    assert finish(torch.tensor([0.5, 1.5, -0.5, torch.nan, torch.inf, -torch.inf])).tolist() == [3.0, 5.0, 3.0, 0.0, 255.0, 0.0]


def test_only_whole_formats_and_single_grids_are_outputs() -> None:
    assert stored_range(grid(INT8, 0)) == (-128, 127)
    with pytest.raises(ModelError, match="narrower than its storage"):
        stored_range(grid(INT8.narrow, 0))
    several = Grid(INT8, torch.ones(3), torch.zeros(3, dtype=torch.int32))
    for read in (scalar_zero, scalar_scale):
        with pytest.raises(ModelError, match="one scale and zero for the whole tensor"):
            read(several)
