"""The contract of every weight observer of the table, and the promise that stored weights find their codes again."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exactq.errors import ModelError, UsageError
from exactq.numerics.formats import FORMATS, INT4, INT8, UINT8, Format, Grid
from exactq.quantization.ranges import middle
from exactq.quantization.weights import WEIGHT_OBSERVERS, weight_grid

EVERY = pytest.mark.parametrize("observer", WEIGHT_OBSERVERS)
SHAPES = [(8, 5), (6, 4, 3, 3), (6, 3, 1, 1), (4, 2, 3), (6, 1, 3, 3), (1, 1)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=150)
@given(
    st.sampled_from([f for f in FORMATS.values() if f.bits <= 16]),
    st.floats(2.0**-126, 2.0**126, width=32) | st.integers(-126, 112).map(lambda n: 2.0**n * 1.9999998807907104),
)
def test_stored_as_code_times_scale_a_weight_finds_its_code_again(fmt: Format, scale: float) -> None:
    grid = Grid(fmt, torch.tensor(scale), torch.tensor(middle(fmt), dtype=torch.int32))
    codes = torch.arange(fmt.lo, fmt.hi + 1).to(fmt.dtype)
    stored = grid.decode(codes)
    kept = torch.isfinite(stored)  # code · scale may be beyond float32
    assert torch.equal(grid.encode(stored)[kept], codes[kept])
    # PyTorch's quantize_per_channel multiplies by the float32 reciprocal of the scale.
    reciprocal = torch.round(stored * (1.0 / grid.scale)) + grid.zero
    assert torch.equal(reciprocal.clamp(fmt.lo, fmt.hi)[kept], codes.float()[kept])


@EVERY
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("fmt", [INT8.narrow, INT8, INT4.narrow])
def test_a_grid_is_symmetric_shaped_to_broadcast_and_loses_little(
    observer: str, shape: tuple[int, ...], axis: int | None, fmt: Format
) -> None:
    w = normal(*shape)
    g = weight_grid(w, fmt, axis, observer=observer)
    assert g.scale.shape == (() if axis is None else (shape[0], *[1] * (len(shape) - 1)))
    assert not g.zero.any()
    # The coarsest choice leaves half of the codes: half a step of twice the scale.
    most = w.abs().amax() if axis is None else w.abs().flatten(1).amax(1).reshape(g.scale.shape)
    assert bool((g.scale <= most / 64 if fmt.bits == 8 else g.scale <= most / fmt.hi * (1 + 2**-23)).all())
    assert ((g.decode(g.encode(w)) - w) ** 2).sum() < ((w**2).sum() * (0.001 if fmt.bits == 8 else 0.1))


@EVERY
@pytest.mark.parametrize("power", [-120, -90, -40, 40, 100])
def test_weights_times_a_power_of_two_have_their_scales_times_it(observer: str, power: int) -> None:
    w = normal(5, 40)
    plain, scaled = (weight_grid(x, INT8.narrow, 0, observer=observer).scale for x in (w, w * 2.0**power))
    assert torch.equal(scaled, (plain * 2.0**power).clamp(min=2.0**-60))


@EVERY
def test_a_floor_is_kept(observer: str) -> None:
    w = normal(6, 50)
    free = weight_grid(w, INT8.narrow, 0, observer=observer)
    floor = torch.tensor([0.0, 1e-9, 0.02, 0.5, 10.0, 0.0])
    held = weight_grid(w, INT8.narrow, 0, observer=observer, floor=floor)
    assert bool((held.scale.flatten() >= floor).all())
    assert torch.equal(held.scale[[0, 1, 5]], free.scale[[0, 1, 5]])
    again = weight_grid(w, INT8.narrow, 0, observer=observer, floor=held.scale)
    assert torch.equal(again.scale, held.scale)


@EVERY
def test_channels_of_zeros_take_the_largest_scale_of_the_others(observer: str) -> None:
    w = normal(4, 32)
    w[1] = 0
    scale = weight_grid(w, INT8.narrow, 0, observer="minmax").scale.flatten()
    assert scale[1] == scale.max()
    for axis in (0, None):
        assert bool((weight_grid(torch.zeros(3, 4), INT8.narrow, axis, observer=observer).scale == 2.0**-7).all())


@EVERY
@pytest.mark.parametrize(("bad", "what"), [(math.nan, "a NaN"), (math.inf, "an infinity"), (-math.inf, "an infinity")])
def test_weights_that_are_not_finite_are_refused_by_channel(observer: str, bad: float, what: str) -> None:
    w = normal(4, 3, 3, 3)
    w[2, 1, 0, 0] = bad
    with pytest.raises(ModelError, match=rf"{what} among the weights \(channel 2\): a grid needs finite values"):
        weight_grid(w, INT8.narrow, 0, observer=observer)
    with pytest.raises(ModelError, match=rf"{what} among the weights: a grid"):
        weight_grid(w, INT8.narrow, observer=observer)
    with pytest.raises(ModelError, match="no elements"):
        weight_grid(torch.empty(3, 0), INT8.narrow, 0, observer=observer)


def test_an_unknown_observer_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown weight observer 'pairsave': did you mean 'pairsafe'"):
        weight_grid(normal(2, 2), INT8, observer="pairsave")


def test_pairs_need_signed_weights_with_channels_first() -> None:
    with pytest.raises(ModelError, match="output channels in axis 0"):
        weight_grid(normal(4, 4), INT8.narrow, 1, observer="pairsafe")
    with pytest.raises(ModelError, match="signed weights of up to 8 bits"):
        weight_grid(normal(4, 4), UINT8, 0, observer="pairsafe")
