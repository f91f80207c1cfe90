"""Fake quantization: the bits of the grid forward, the identity inside the range backward, and the deployed model's grids."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.nets import NETS, data, quantized
from tests.training import models
from torch import Tensor

from exactq.errors import ModelError, UsageError
from exactq.graphs.graph import Graph, constant
from exactq.graphs.programs import bind
from exactq.graphs.qdq import CODES, REAL, read_dequantize, read_quantize
from exactq.numerics.formats import INT4, INT8, INT32, UINT4, UINT8, Format, Grid
from exactq.plans.plan import Own
from exactq.quantization.bias import bias_codes, product
from exactq.quantized import Quantized
from exactq.traces import Program, Step, walk
from exactq.training.rounding import fake_quantize, fake_quantize_bias
from exactq.training.straight_through import Moving, straight_through
from exactq.training.tuning import deployed, start_of

FORMATS = (INT4.narrow, UINT4, INT8, UINT8)


def grid(fmt: Format, scale: float, zero: int) -> Grid:
    return Grid(fmt, torch.tensor(scale), torch.tensor(zero, dtype=torch.int32))


def reference(graph: Graph) -> Program:
    """The Q/DQ graph with `Grid.encode` and `Grid.decode` in the place of its quantize and dequantize nodes."""
    steps = []
    for node in graph.calls:
        q, dq = read_quantize(graph, node), read_dequantize(graph, node)
        run, reads = bind(graph, node)
        for made, function in ((q, q and q.grid.encode), (dq, dq and dq.grid.decode)):
            if made is None:
                continue
            run, reads = function, (graph.name(made.source),)
            if made.source.op == "get_attr":
                value = constant(graph.module, made.source)
                run, reads = (lambda function=function, value=value: function(value)), ()
        steps.append(Step(graph.name(node), run, reads, ""))
    return Program(tuple(i.name for i in graph.inputs), tuple(steps), graph.outputs)


def values(program: Program, inputs: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        walk(program, inputs, lambda step, value: found.__setitem__(step.name, value))
    return found


# One value


@given(
    st.sampled_from(FORMATS),
    st.floats(2.0**-30, 2.0**30, width=32),
    st.floats(0, 1),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20),
)
def test_the_forward_has_the_bits_of_decoded_codes(fmt: Format, scale: float, place: float, reals: list[float]) -> None:
    at = grid(fmt, scale, fmt.lo + round(place * (fmt.hi - fmt.lo)))
    x = torch.cat([torch.tensor(reals), (torch.arange(-20, 20) + 0.5) * scale])  # ties
    wanted = at.decode(at.encode(x))
    assert torch.equal(fake_quantize(x, at).view(torch.int32), wanted.view(torch.int32))  # −0 would differ


def test_the_forward_has_the_bits_for_channels_and_blocks() -> None:
    x = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    for shape in ((6, 1, 1), (3, 2, 1)):
        generator = torch.Generator().manual_seed(1)
        at = Grid(
            UINT8, torch.rand(shape, generator=generator) / 50 + 1e-3, torch.randint(0, 255, shape, generator=generator).int()
        )
        assert torch.equal(fake_quantize(x, at), at.decode(at.encode(x)))


def test_the_gradient_is_one_where_a_code_is_near_and_zero_where_it_was_clamped() -> None:
    at = grid(UINT4, 0.5, 3)  # −1.5 .. 6
    x = torch.tensor([-1.8, -1.75, -1.5, 0.0, 0.3, 6.0, 6.24, 6.26, 9.0, -9.0], requires_grad=True)
    slope = torch.arange(1.0, 11.0)
    (fake_quantize(x, at) * slope).sum().backward()
    by_hand = [
        float(s) if 0 <= round(Fraction(v.item()) / Fraction(1, 2)) + 3 <= 15 else 0.0
        for v, s in zip(x.detach(), slope, strict=True)
    ]
    assert x.grad is not None
    assert x.grad.tolist() == by_hand == [0.0, 0.0, 3.0, 4.0, 5.0, 6.0, 7.0, 0.0, 0.0, 0.0]


def test_a_nan_is_seen_and_learns_nothing() -> None:
    x = torch.tensor([torch.nan, 1.0], requires_grad=True)
    y = fake_quantize(x, grid(UINT8, 0.5, 0))
    y.sum().backward()
    assert y[0].isnan()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0]


def test_a_bias_lies_on_the_grid_of_the_products_and_its_gradient_passes() -> None:
    bias = torch.tensor([0.3, -7.0, 0.0], requires_grad=True)
    x, w = grid(UINT8, 0.02, 7), Grid(INT8, torch.tensor([0.01, 0.02, 0.5]).reshape(3, 1), torch.zeros(3, 1, dtype=torch.int32))
    y = fake_quantize_bias(bias, x, w)
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    scale = product(x.scale, w.scale).flatten()
    at = Grid(INT32, scale, torch.zeros(3, dtype=torch.int32))
    assert torch.equal(y.detach(), at.decode(bias_codes(bias, scale)))
    assert bias.grad is not None
    assert bias.grad.tolist() == [1.0, 2.0, 3.0]


def test_formats_beyond_float32_are_refused() -> None:
    with pytest.raises(ModelError, match="at most 16-bit codes apart"):
        fake_quantize(torch.ones(2), grid(INT32, 1.0, 0))


def test_the_gradient_of_a_layer_is_that_of_its_decoded_operands() -> None:
    """y = Σ fq(w)·fq(x): dL/dw = fq(x), dL/dx = fq(w), where neither is clamped."""
    x, w = torch.tensor([0.26, 0.9], requires_grad=True), torch.tensor([0.33, -0.6], requires_grad=True)
    gx, gw = grid(UINT4, 0.25, 0), grid(INT4.narrow, 0.1, 0)
    (fake_quantize(x, gx) @ fake_quantize(w, gw)).backward()
    assert torch.equal(w.grad, torch.tensor([0.25, 1.0]))
    assert torch.equal(x.grad, gw.decode(torch.tensor([3, -6])))


# A model


@pytest.mark.parametrize("name", NETS)
def test_every_value_of_the_fake_quantized_model_is_that_of_the_qdq_graph(name: str) -> None:
    made = quantized(name)
    simulation = straight_through(start_of(made))
    for inputs in data(NETS[name][1], 1, seed=3):
        wanted = values(reference(made.graph), inputs)
        names = [n for n in wanted if not n.endswith(CODES)]
        with torch.no_grad():
            passed = simulation.forward(simulation.begin(), inputs, names)
        assert len(names) > 1
        for value in names:
            assert torch.equal(passed.values[value], wanted[value]), value
        for got, expected in zip(passed.outputs, walk(reference(made.graph), inputs), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("name", NETS)
def test_deploying_an_untrained_state_gives_the_same_model(name: str) -> None:
    made = quantized(name)
    simulation = straight_through(start_of(made))
    again = deployed(made, simulation.finish(simulation.begin()))
    assert again.artifact() == made.artifact()
    assert again.plan == made.plan


@pytest.mark.parametrize(
    ("weights", "observer", "isa"),
    [
        (INT8.narrow, "minmax", "avx512vnni"),
        (INT4.narrow, "minmax", ""),
        (INT8.narrow, "pairsafe", "avx2"),
        (INT4.narrow, "mse", ""),
    ],
)
def test_weights_that_moved_are_gridded_as_they_are_deployed(weights: Format, observer: str, isa: str) -> None:
    made = models.quantized(weights, observer, isa=isa)
    simulation = straight_through(start_of(made))
    state = simulation.begin()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in state.trained.values():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    state = simulation.settle(state)
    moved = deployed(made, simulation.finish(state))
    batch = next(iter(models.images(seed=9))).inputs
    wanted = values(reference(moved.graph), batch)
    names = [n for n in wanted if not n.endswith(CODES)]
    with torch.no_grad():
        passed = simulation.forward(state, batch, names)
    for name in names:
        assert torch.equal(passed.values[name], wanted[name]), name


def test_a_layer_given_the_emulators_codes_misses_its_integers_only_at_ties() -> None:
    """The float sum and its rounding differ from the kernel's by ulps: one code at most, and seldom."""
    made = models.quantized(INT8.narrow)
    simulation = straight_through(start_of(made))
    batch = next(iter(models.images(seed=8))).inputs
    codes = values(made.program(), batch)
    grids = made.grids
    with torch.no_grad():
        passed = simulation.forward(simulation.begin(), batch, [name + REAL for name in grids])
    elements, differ = 0, 0
    for name, at in grids.items():
        if name + CODES in codes and name + REAL in passed.values:
            distance = (at.encode(passed.values[name + REAL]).int() - codes[name + CODES].int()).abs()
            assert int(distance.max()) <= 1, name
            elements, differ = elements + distance.numel(), differ + int(distance.count_nonzero())
    assert elements > 5000
    assert differ <= elements // 500


def test_float_layers_are_trained_too_and_stay_float() -> None:
    made = models.quantized(stays_float="fc2")
    simulation = straight_through(start_of(made))
    state = simulation.begin()
    batch = next(iter(models.images()))
    simulation.forward(state, batch.inputs, ()).outputs[0].sum().backward()
    assert set(state.trained) == {
        n for layer in ("conv", "depthwise", "fc1", "fc2") for n in (f"{layer}.weight", f"{layer}.bias")
    }
    for name, tensor in state.trained.items():
        assert tensor.grad is not None, name
        assert bool(tensor.grad.any()), name


def test_a_small_change_is_a_grid_step_or_as_large_a_share_of_the_tensor() -> None:
    made = models.quantized(stays_float="fc2")
    simulation = straight_through(start_of(made))
    state = simulation.begin()
    with torch.no_grad():
        state.trained["fc1.bias"].zero_()
    units = simulation.units(state)
    assert set(units) == set(state.trained)
    weights = ("conv.weight", "depthwise.weight", "fc1.weight")
    assert all(units[n] == float(made.grids[n].scale.double().mean()) for n in weights)
    sizes = {n: float(t.detach().double().square().mean().sqrt()) for n, t in state.trained.items()}
    share = sorted(units[n] / sizes[n] for n in weights)[1]
    assert units["fc2.weight"] == share * sizes["fc2.weight"]
    assert units["fc1.bias"] == share * sorted(s for s in sizes.values() if s)[(len(sizes) - 1) // 2]


# Ranges and scales that move


def moving(made: Quantized, ranges: Moving) -> tuple[Any, Any, Mapping[str, Tensor]]:
    simulation = straight_through(start_of(made), ranges=ranges)
    state = simulation.begin()
    batch = next(iter(models.images(seed=2))).inputs
    with torch.no_grad():
        return simulation, state, simulation.forward(state, batch, simulation.watched).values


def test_moving_ranges_follow_the_observer_and_then_freeze() -> None:
    made = models.quantized()
    simulation, state, seen = moving(made, Moving(decay=0.75, until=0.5))
    own = {n for n, slot in made.plan.slots.items() if isinstance(slot, Own) and n not in made.float_graph.constants}
    assert simulation.watched == own
    moved = simulation.advance(state, seen, 1, 0.1)
    for name in own:
        batch = torch.stack([seen[name].min().clamp(max=0), seen[name].max().clamp(min=0)])
        before = state.kept[f"{name}/range"]
        assert torch.equal(moved.kept[f"{name}/range"], before + 0.25 * (batch - before))
    assert simulation.advance(moved, seen, 2, 0.6).kept == moved.kept
    grids = simulation.finish(moved).grids
    assert any(float(grids[n].scale) != float(made.grids[n].scale) for n in own)
    after = deployed(made, simulation.finish(moved)).grids
    assert all(after[n].same_as(grids[n]) for n in own)


def test_scales_that_take_a_search_stand_between_two_of_them() -> None:
    made = models.quantized(INT4.narrow, "mse")
    simulation = straight_through(start_of(made), refresh=3)
    state = simulation.begin()
    with torch.no_grad():
        state.trained["fc1.weight"].mul_(1.5)
    assert torch.equal(simulation.advance(state, {}, 1, 0.1).kept["fc1.weight/scale"], state.kept["fc1.weight/scale"])
    searched = simulation.advance(state, {}, 3, 0.1).kept["fc1.weight/scale"]
    assert bool((searched > 1.2 * state.kept["fc1.weight/scale"]).all())


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"decay": -0.1}, {"until": 0.0}, {"until": 1.5}])
def test_ranges_that_cannot_move_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="moving ranges need a decay"):
        Moving(**wrong)


def test_a_refresh_needs_steps() -> None:
    with pytest.raises(UsageError, match="every 0 steps: 1 or more"):
        straight_through(start_of(models.quantized()), refresh=0)
