"""Calibration over a graph: streaming, mergeable, and whatever is wrong with the data is named."""

from __future__ import annotations

import math
import pickle
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.nets import IMAGE, data, edited, graph_of, net, plan_of
from torch import Tensor, nn

from exactq.calibration import OBSERVERS
from exactq.calibration.collect import States, calibrate, merge, observers
from exactq.calibration.histograms import Histogram
from exactq.errors import DataError, UsageError
from exactq.flow import plan_graph, prepare
from exactq.graphs.programs import float_trace
from exactq.numerics.formats import UINT8
from exactq.plans.plan import Edge, Fixed, Own, Plan
from exactq.plans.recipes import Recipe


def watching(observer: str, name: str = "residual") -> Plan:
    return plan_graph(graph_of(name), recipe=Recipe("mine", activation_observer=observer))


def key(states: States) -> dict[str, Any]:
    """States as something that compares."""

    def plain(state: Any) -> Any:
        return (state.exponent, state.counts.tolist(), state.zeros, state.ends) if isinstance(state, Histogram) else state

    return {name: plain(state) for name, state in states.items()}


def test_every_value_with_a_grid_of_its_own_is_watched_and_no_other() -> None:
    graph, plan = graph_of("residual"), plan_of("residual")
    states = calibrate(graph, plan, data(IMAGE))
    own = {n for n, s in plan.slots.items() if isinstance(s, Own) and not n.endswith("weight")}
    assert set(states) == set(observers(plan, graph)) == own == {"inputs_0", "relu", "relu_1", "b", "relu_2"}


def test_what_was_seen_is_what_the_float_model_computes() -> None:
    graph = graph_of("residual")
    batches = data(IMAGE)
    states = calibrate(graph, watching("minmax"), batches)
    traces = [float_trace(graph, batch) for batch in batches]
    for name in ("relu", "b", "relu_2"):
        values = torch.cat([t[name].flatten() for t in traces])
        assert (states[name].lo, states[name].hi) == (values.min().item(), values.max().item())


@pytest.mark.parametrize("observer", [*OBSERVERS, "percentile:90"])
def test_halves_merged_are_the_whole(observer: str) -> None:
    graph, plan = graph_of("residual"), watching(observer)
    batches = data(IMAGE, batches=4)
    whole = calibrate(graph, plan, batches)
    halves = [calibrate(graph, plan, part) for part in (batches[::2], batches[1::2])]
    assert key(merge(plan, graph, *halves)) == key(merge(plan, graph, *halves[::-1])) == key(whole)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_memory_does_not_grow_with_the_number_of_batches(observer: str) -> None:
    graph, plan = graph_of("residual"), watching(observer)

    def stream(count: int) -> Iterator[tuple[Tensor, ...]]:
        for seed in range(count):
            yield from data(IMAGE, batches=1, size=2, seed=seed)

    def cost(count: int) -> tuple[int, int]:
        tracemalloc.start()
        states = calibrate(graph, plan, stream(count))
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return len(pickle.dumps(states)), kept

    cost(2)  # what is loaded at first use is not of the batches
    (few, few_kept), (many, many_kept) = cost(3), cost(30)
    assert many < few * 1.1 + 200  # numbers alone have a digit more
    assert many_kept < few_kept + 50_000


def test_an_edge_is_watched_beside_its_value_with_its_own_observer() -> None:
    graph = graph_of("residual")
    edge = Edge("relu", "add")
    plan = edited(plan_of("residual"), {"relu": Fixed(UINT8, 0.1, 0, "why")}, {edge: Own(UINT8, "mse", "why")})
    states = calibrate(graph, plan, data(IMAGE))
    assert "relu" not in states
    assert isinstance(states["relu@add"], Histogram)
    assert states["relu@add"].total == 2 * 8 * 3 * 8 * 8


def test_progress_is_told_every_sample_and_empty_batches_are_nothing() -> None:
    told: list[int] = []
    batches = [data(IMAGE, 1, size)[0] for size in (3, 1, 5)]
    empty = (IMAGE[0][:0],)
    states = calibrate(graph_of("residual"), plan_of("residual"), [batches[0], empty, *batches[1:]], told.append)
    assert told == [3, 1, 5]
    assert key(states) == key(calibrate(graph_of("residual"), plan_of("residual"), batches))


@pytest.mark.parametrize("batches", [[], [(IMAGE[0][:0],)]])
def test_no_sample_is_refused(batches: list[tuple[Tensor, ...]]) -> None:
    with pytest.raises(DataError, match="the calibration data are empty: a range needs at least one sample"):
        calibrate(graph_of("residual"), plan_of("residual"), batches)


def image(**options: Any) -> Tensor:
    return torch.zeros(2, 3, 8, 8, **options)


def with_bad(value: float) -> Tensor:
    x = image()
    x[1, 2, 3, 4] = value
    return x


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((), "a batch has 0 inputs, the model takes 1: inputs_0"),
        ((image(), image()), "a batch has 2 inputs, the model takes 1: inputs_0"),
        ((torch.zeros(2, 3, 8),), "input `inputs_0` has the shape (2, 3, 8); the model takes ('batch', 3, 8, 8)"),
        ((torch.zeros(2, 3, 9, 8),), "input `inputs_0` has the shape (2, 3, 9, 8); the model takes ('batch', 3, 8, 8)"),
        ((image(dtype=torch.float64),), "input `inputs_0` is torch.float64; the model takes torch.float32"),
        ((image().numpy(),), "input `inputs_0` is of type ndarray; the model takes a tensor of torch.float32"),
        ((with_bad(math.nan),), "input `inputs_0` has nan at index (1, 2, 3, 4): calibration needs finite values"),
        ((with_bad(-math.inf),), "input `inputs_0` has -inf at index (1, 2, 3, 4)"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(batch: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        calibrate(graph_of("residual"), plan_of("residual"), [batch])
    assert message in str(error.value)


def test_inputs_of_one_batch_hold_the_same_samples() -> None:
    name = "two inputs, two outputs"
    with pytest.raises(DataError, match="different numbers of samples: inputs_0 2, inputs_1 1"):
        calibrate(graph_of(name), plan_of(name), [(image(), image()[:1])])


def test_a_value_that_overflows_inside_is_named() -> None:
    with pytest.raises(DataError, match=r"calibration, value `relu_2`: 0 NaN and .* infinite among"):
        calibrate(graph_of("residual"), plan_of("residual"), [(image() + 3e38,)])


def test_integer_inputs_pass_through() -> None:
    ids = torch.randint(0, 9, (2, 6))
    graph = prepare(net(lambda s, x: s.fc(s.e(x)), e=nn.Embedding(9, 4), fc=nn.Linear(4, 3)), (ids,))
    assert set(calibrate(graph, plan_graph(graph), data((ids,)))) == {"e", "fc"}


def test_an_unknown_observer_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown observer 'minmx': did you mean 'minmax'"):
        observers(edited(plan_of("residual"), {"b": Own(UINT8, "minmx", "why")}), graph_of("residual"))
