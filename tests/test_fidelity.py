"""Signal to noise and agreement: gathered over batches, equal to the direct computation on all data at once."""

from __future__ import annotations

import math

import pytest
import torch
from tests.nets import IMAGE, data, quantized

from exactq.fidelity import Outputs, Ratio, layer_sqnr
from exactq.graphs.programs import float_trace
from exactq.graphs.qdq import CODES
from exactq.numerics.measures import agreement, sqnr_db
from exactq.traces import trace


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_ratio_over_batches_is_that_of_all_data() -> None:
    reference, test = normal(12, 5, seed=0), normal(12, 5, seed=1)
    ratio = Ratio()
    for part in (slice(0, 3), slice(3, 4), slice(4, 12)):
        ratio.add(reference[part], test[part])
    assert ratio.decibels == pytest.approx(sqnr_db(reference, test), abs=1e-9)


@pytest.mark.parametrize(
    ("reference", "test", "decibels"), [([0.0], [0.0], math.inf), ([1.0], [1.0], math.inf), ([0.0], [1.0], -math.inf)]
)
def test_nothing_lost_is_endless_and_nothing_kept_is_nothing(
    reference: list[float], test: list[float], decibels: float
) -> None:
    ratio = Ratio()
    ratio.add(torch.tensor(reference), torch.tensor(test))
    assert ratio.decibels == decibels == sqnr_db(torch.tensor(reference), torch.tensor(test))


def test_outputs_are_compared_over_all_batches_and_all_outputs() -> None:
    first, other = (normal(10, 4, seed=s) for s in (0, 1))
    second, another = (normal(10, 2, 3, seed=s) for s in (2, 3))
    outputs = Outputs()
    for part in (slice(0, 7), slice(7, 10)):
        outputs.add((first[part], second[part]), (other[part], another[part]))
    both, all_found = (torch.cat([a.flatten(), b.flatten()]) for a, b in ((first, second), (other, another)))
    assert outputs.ratio.decibels == pytest.approx(sqnr_db(both, all_found), abs=1e-9)
    assert outputs.mean_error == pytest.approx(float((all_found.double() - both.double()).abs().mean()), rel=1e-12)
    assert outputs.agreement == agreement(first, other)
    assert outputs.samples == 10


def test_outputs_that_are_no_scores_have_no_agreement() -> None:
    outputs = Outputs()
    assert (outputs.agreement, outputs.mean_error) == (None, 0.0)
    outputs.add((torch.zeros(4, 1),), (torch.ones(4, 1),))
    assert (outputs.agreement, outputs.mean_error) == (None, 1.0)


def test_the_drift_of_each_layer_is_that_of_its_decoded_codes() -> None:
    made = quantized("residual")
    batches = data(IMAGE, seed=9)
    found = layer_sqnr(made, batches)
    program = made.program()
    grids = {s.name: s.grid for s in program.steps if s.grid is not None}
    assert list(found) == [name.removesuffix(CODES) for name in grids]
    for name, decibels in found.items():
        wanted = torch.cat([({"inputs_0": b[0]} | float_trace(made.float_graph, b))[name] for b in batches])
        grid = grids[name + CODES]
        assert grid is not None
        real = torch.cat([grid.decode(trace(program, b)[name + CODES]) for b in batches])
        assert decibels == pytest.approx(sqnr_db(wanted, real), abs=1e-6)
    assert all(20 < decibels < 70 for decibels in found.values())
