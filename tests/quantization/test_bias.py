"""Bias codes beside Fractions, and room in the accumulator for every bias."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exactq.errors import ModelError
from exactq.numerics.formats import INT8
from exactq.quantization.bias import LARGEST, bias_codes, guard, product, scale_floor
from exactq.quantization.nearest import minmax_grid
from exactq.quantization.ranges import SMALLEST

scales = st.floats(2.0**-60, 2.0**40, width=32)
biases = st.lists(st.floats(-(2.0**40), 2.0**40, width=32), min_size=1, max_size=6)


@settings(max_examples=150)
@given(biases, scales)
def test_codes_are_the_nearest_ties_to_even(bias: list[float], scale: float) -> None:
    exact = [Fraction(b) / Fraction(scale) for b in bias]
    if any(abs(q) > LARGEST for q in exact):
        with pytest.raises(ModelError, match="raise the channel's weight scale"):
            bias_codes(torch.tensor(bias), torch.tensor(scale))
        return
    codes = bias_codes(torch.tensor(bias), torch.tensor(scale))
    assert codes.dtype == torch.int32
    assert codes.tolist() == [round(b / scale) for b in bias], "Python's floats are float64 and round half to even"
    # Up to 2^27 a quotient of float32s that is no tie is further from one than float64 rounds.
    assert all(code == round(q) for code, q in zip(codes.tolist(), exact, strict=True) if abs(q) < 2**27)


@settings(max_examples=150)
@given(biases, scales)
def test_the_floor_is_enough_and_no_more_than_needed(bias: list[float], input_scale: float) -> None:
    b, sx = torch.tensor(bias), torch.tensor(input_scale)
    floor = scale_floor(b, sx)
    codes = bias_codes(b, product(sx, floor))  # does not raise
    lifted = floor > SMALLEST
    # A floor a few units in the last place too high leaves the code a few parts in 2^23 short.
    assert bool((codes[lifted].abs() >= LARGEST * (1 - 2**-21)).all())


def test_a_guarded_grid_names_its_channels_and_keeps_the_others() -> None:
    w, sx = torch.ones(4, 3) * torch.tensor([[1.0], [1e-12], [1.0], [1e-9]]), torch.tensor(0.01)
    b = torch.tensor([1.0, 5.0, 1e3, 0.0])
    before = minmax_grid(w, INT8.narrow, 0)
    after, needy = guard(b, sx, before)
    assert needy == [1]
    assert torch.equal(after.scale[[0, 2, 3]], before.scale[[0, 2, 3]])
    assert after.scale.shape == before.scale.shape
    codes = bias_codes(b, product(sx, after.scale.flatten()))
    assert codes[1].item() == pytest.approx(LARGEST, rel=1e-6)
    again, none = guard(b, sx, after)
    assert none == []
    assert torch.equal(again.scale, after.scale)


def test_one_scale_for_all_is_raised_to_the_neediest() -> None:
    before = minmax_grid(torch.full((3, 2), 1e-12), INT8.narrow)
    b, sx = torch.tensor([0.0, 1.0, 7.0]), torch.tensor(0.5)
    after, needy = guard(b, sx, before)
    assert needy == [1, 2]
    assert after.scale.shape == ()
    assert bias_codes(b, product(sx, after.scale)).abs().max().item() <= LARGEST


def test_room_is_left_for_the_products() -> None:
    assert LARGEST + 33_155 * 255 * 127 <= 2**31 - 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bias_that_is_not_finite_is_refused(bad: float) -> None:
    b = torch.tensor([0.0, bad])
    with pytest.raises(ModelError, match="of channel 1"):
        bias_codes(b, torch.tensor(1.0))
    with pytest.raises(ModelError, match="the bias of channel 1 is"):
        scale_floor(b, torch.tensor(1.0))


@pytest.mark.parametrize(("sx", "sw"), [(1e-30, 1e-30), (1e30, 1e30), (2.0**-63, 2.0**-64)])
def test_a_product_that_is_no_normal_float_is_refused(sx: float, sw: float) -> None:
    with pytest.raises(ModelError, match="is no normal float32"):
        product(torch.tensor(sx), torch.tensor([1.0, sw]))
