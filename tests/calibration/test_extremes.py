"""Extremes and their means, beside Python's min, max and Fractions."""

from __future__ import annotations

from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from exactq.calibration import OBSERVERS
from exactq.calibration.extremes import Averages, Extremes, extremes, mean_extremes
from exactq.numerics.formats import UINT8

reals = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9)


@given(reals)
def test_extremes_are_pythons(x: list[float]) -> None:
    assert extremes(torch.tensor(x)) == Extremes(min(x), max(x))


@given(st.lists(reals, min_size=1, max_size=5), st.randoms())
def test_the_average_is_the_exact_mean_in_any_order(batches: list[list[float]], random: object) -> None:
    observer = OBSERVERS["moving_average"]
    state = observer.start()
    for x in sorted(batches, key=lambda _: random.random()):  # type: ignore[attr-defined]
        state = observer.see(state, torch.tensor(x))
    lows, highs = sum(Fraction(min(x)) for x in batches), sum(Fraction(max(x)) for x in batches)
    assert state == Averages(len(batches), Fraction(lows), Fraction(highs))
    assert mean_extremes(state) == Extremes(float(lows / len(batches)), float(highs / len(batches)))


def test_a_batch_weighs_the_same_however_many_elements_it_has() -> None:
    observer = OBSERVERS["moving_average"]
    state = observer.see(observer.see(observer.start(), torch.full((100,), 1.0)), torch.tensor([3.0]))
    assert observer.range(state, UINT8, False) == (0.0, 2.0)
