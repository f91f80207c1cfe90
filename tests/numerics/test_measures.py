"""Measures beside Fractions, and what they say at their edges."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exactq.errors import DataError
from exactq.numerics.measures import agreement, cosine, sqnr_db

pairs = st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 2), min_size=1, max_size=9)


@given(pairs)
def test_sqnr_and_cosine_are_their_formulas(both: list[tuple[float, float]]) -> None:
    r, t = torch.tensor(both).T
    signal = sum(Fraction(a) ** 2 for a, _ in both)
    noise = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in both)
    if noise == 0:
        assert sqnr_db(r, t) == math.inf
    elif signal == 0:
        assert sqnr_db(r, t) == -math.inf
    else:
        assert sqnr_db(r, t) == pytest.approx(10 * (math.log10(signal) - math.log10(noise)), abs=1e-6)
    power = sum(Fraction(b) ** 2 for _, b in both)
    if signal and power:
        dot = sum(Fraction(a) * Fraction(b) for a, b in both)
        assert cosine(r, t) == pytest.approx(float(dot) / math.sqrt(signal) / math.sqrt(power), abs=1e-9)
    else:
        assert cosine(r, t) == float(signal == power)


def test_agreement_takes_the_first_of_equals_on_any_axis() -> None:
    a, b = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]]), torch.tensor([[5.0, 4.0, 0.0], [0.0, 1.0, 2.0]])
    assert agreement(a, b) == 0.5
    assert agreement(a, b, axis=0) == pytest.approx(2 / 3)
    assert agreement(a.T, b.T, axis=0) == 0.5
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).round()
    assert agreement(x, torch.nn.functional.one_hot(torch.tensor([r.index(max(r)) for r in x.tolist()]), 7).float()) == 1


@pytest.mark.parametrize("measure", [sqnr_db, cosine, agreement])
def test_what_cannot_be_compared_is_refused(measure: object) -> None:
    x = torch.ones(2, 3)
    for bad, message in (
        (torch.ones(3, 2), r"\(2, 3\) and \(3, 2\) cannot be compared"),
        (torch.full((2, 3), math.nan), "the test has nan at flat index 0"),
    ):
        with pytest.raises(DataError, match=message):
            measure(x, bad)  # type: ignore[operator]
    with pytest.raises(DataError, match="not empty"):
        measure(x[:0], x[:0])  # type: ignore[operator]
