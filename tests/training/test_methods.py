"""The names of the ways of training, and what each is."""

from __future__ import annotations

import pytest
import torch
from tests.training import models

from exactq.errors import UsageError
from exactq.training.methods import METHODS, SAYS, method_named
from exactq.training.tuning import start_of


@pytest.mark.parametrize("name", METHODS)
def test_every_method_begins_where_the_quantized_model_is(name: str) -> None:
    made = models.quantized()
    simulation = method_named(name, made.lower)(start_of(made))
    state = simulation.settle(simulation.begin())
    grids = simulation.grids(state)
    assert all(torch.equal(at.scale, made.grids[value].scale) for value, at in grids.items())
    assert all(torch.equal(at.zero, made.grids[value].zero) for value, at in grids.items())
    assert set(simulation.units(state)) == set(state.trained)
    finished = simulation.finish(state)
    assert all(torch.equal(made.float_graph.constants[value], tensor) for value, tensor in finished.constants.items())


def test_names_tell_the_states_apart() -> None:
    made = models.quantized()
    names = {method_named(name, made.lower)(start_of(made)).name for name in METHODS}
    assert len(names) == len(METHODS) == len(SAYS)


def test_an_unknown_method_is_answered_with_a_close_name() -> None:
    with pytest.raises(UsageError, match="unknown method of training 'exakt': did you mean 'exact'"):
        method_named("exakt", models.quantized().lower)
