"""The contract of every observer of the table; a new one needs no new test."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exactq.calibration import OBSERVERS, Observer, observer_named
from exactq.calibration.histograms import Histogram
from exactq.errors import DataError, UsageError
from exactq.numerics.formats import INT4, INT8, INT16, UINT8
from exactq.quantization.ranges import grid

EVERY = pytest.mark.parametrize("name", [*OBSERVERS, "percentile:90"])
KINDS = [(UINT8, False), (INT8, True), (INT8.narrow, True), (INT8, False), (INT4, True), (INT16, True)]
floats = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 2.0**-149, -3.4e38]
)
batches = st.lists(floats, max_size=12).map(lambda x: torch.tensor(x, dtype=torch.float32))


def key(state: Any) -> Any:
    """A state as something that compares."""
    if isinstance(state, Histogram):
        filled = state.counts.nonzero().flatten()
        return state.exponent, filled.tolist(), state.counts[filled].tolist(), state.zeros, state.ends
    return state


def after(observer: Observer, *batches: Tensor) -> Any:
    state = observer.start()
    for x in batches:
        state = observer.see(state, x)
    return state


@EVERY
@settings(max_examples=40)
@given(batches, batches, batches)
def test_merge_is_associative_and_commutative_and_as_if_one_had_seen_all(name: str, x: Tensor, y: Tensor, z: Tensor) -> None:
    observer = observer_named(name)
    a, b, c = (after(observer, t) for t in (x, y, z))
    before = [key(s) for s in (a, b, c)]
    every = key(after(observer, x, y, z))
    assert key(observer.merge(observer.merge(a, b), c)) == every
    assert key(observer.merge(a, observer.merge(b, c))) == every
    assert key(observer.merge(c, observer.merge(b, a))) == every
    assert key(observer.merge(a, observer.start())) == key(observer.merge(observer.start(), a)) == key(a)
    assert [key(s) for s in (a, b, c)] == before, "states are values"


@EVERY
@settings(max_examples=40)
@given(st.lists(batches, min_size=1, max_size=3).filter(lambda xs: any(x.numel() for x in xs)), st.sampled_from(KINDS))
def test_a_range_is_finite_holds_zero_and_stays_within_the_data(name: str, xs: list[Tensor], kind: Any) -> None:
    observer, (fmt, symmetric) = observer_named(name), kind
    lo, hi = observer.range(after(observer, *xs), fmt, symmetric)
    seen = torch.cat(xs)
    least, most = min(0.0, seen.min().item()), max(0.0, seen.max().item())
    if symmetric:
        least, most = -max(-least, most), max(-least, most)
        assert lo == -hi
    assert least <= lo <= 0 <= hi <= most
    assert math.copysign(1, hi) == 1, "no negative zero"


@EVERY
@pytest.mark.parametrize(("fmt", "symmetric"), KINDS)
@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -3.0, 1e-30])
def test_constant_and_all_zero_data_have_a_grid_that_holds_them(*, name: str, fmt: Any, symmetric: bool, value: float) -> None:
    observer, x = observer_named(name), torch.full((4, 5), value)
    lo, hi = observer.range(after(observer, x, x), fmt, symmetric)
    g = grid(lo, hi, fmt, symmetric=symmetric)
    # Zero to the value spans the range, so the value is one of its ends; a histogram knows it to a bin, 1/4096 of it.
    allowed = g.scale.item() / 2 if abs(value) < 1e-20 else abs(value) * (0.5 / (fmt.hi - fmt.lo) + 2**-12)
    assert abs(g.decode(g.encode(x)) - x).max().item() <= allowed


@EVERY
def test_a_nan_and_an_infinity_are_counted_and_refused(name: str) -> None:
    observer = observer_named(name)
    bad = torch.tensor([1.0, math.nan, -math.inf, math.inf, math.nan, math.nan])
    with pytest.raises(DataError, match="3 NaN and 2 infinite among 6 elements: a range needs finite values"):
        observer.see(observer.start(), bad)
    with pytest.raises(DataError, match="0 NaN and 1 infinite"):  # beyond float32
        observer.see(observer.start(), torch.tensor([1e300], dtype=torch.float64))


@EVERY
def test_nothing_seen_is_refused_and_empty_batches_are_nothing(name: str) -> None:
    observer = observer_named(name)
    with pytest.raises(DataError, match="nothing was seen"):
        observer.range(after(observer, torch.empty(0, 3)), UINT8, False)
    x = torch.tensor([1.0, -2.0])
    assert key(after(observer, torch.empty(0), x)) == key(after(observer, x))


@EVERY
def test_states_pickle_and_every_float_dtype_is_read(name: str) -> None:
    observer = observer_named(name)
    x = torch.tensor([[0.5, -1.25], [3.0, 0.0]])
    state = after(observer, x)
    assert key(pickle.loads(pickle.dumps(state))) == key(copy.deepcopy(state)) == key(state)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert key(after(observer, x.to(dtype))) == key(state)
    assert key(after(observer, x.T, x[:0])) == key(state)
    assert key(after(observer, x.clone().requires_grad_())) == key(state)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minmx", "unknown observer 'minmx': did you mean 'minmax'?"),
        ("minmax:3", "only percentile takes a parameter; write 'minmax'"),
        ("percentile:abc", "'abc' is no number; write percentile:99.9"),
        ("percentile:nan", "'nan' is no number"),
        ("percentile:", "'' is no number"),
        ("percentile:0", "above 0 and up to 100"),
        ("percentile:101", "above 0 and up to 100"),
    ],
)
def test_a_bad_name_says_what_to_write(name: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        observer_named(name)
    assert message in str(error.value)
