"""Plan + ranges -> Q/DQ graph: small networks give the integers of the real runtime; edited plans do too, or are refused."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.nets import IMAGE, NETS, conv, data, edited, graph_of, net, plan_of, quantized, verified
from torch import Tensor, nn

from exactq.calibration.collect import calibrate
from exactq.errors import ModelError, UsageError
from exactq.flow import prepare, quantize, quantize_graph, verify
from exactq.graphs.graph import Graph, constant
from exactq.graphs.qdq import CODES, read_dequantize, read_quantize
from exactq.numerics.formats import INT4, INT8, INT32, UINT8
from exactq.plans.plan import Edge, Fixed, Float, Fused, Own, PerChannel, PerTensor, Product, Same, Slot
from exactq.quantization.apply import activation_grids, apply
from exactq.quantization.bias import LARGEST

EVERY = pytest.mark.parametrize("name", NETS)
WHY = "asked for"
FLOAT = Float(WHY)


def own(observer: str = "minmax", *, symmetric: bool = False) -> Own:
    return Own(UINT8, observer, WHY, symmetric=symmetric)


def fixed(scale: float, zero: int) -> Fixed:
    return Fixed(UINT8, scale, zero, WHY)


# Whole networks


@EVERY
def test_the_real_runtime_gives_the_predicted_integers(name: str) -> None:
    verdict = verified(quantized(name), NETS[name][1])
    assert verdict.elements > 0
    assert {reason.partition(":")[0] for reason in verdict.unverified} <= {"tanh", "a", "b.weight"}


def test_verification_goes_on_behind_a_float_island() -> None:
    made = quantized("float island")
    verdict = verified(made, IMAGE)
    assert [line.partition(":")[0] for line in verdict.unverified] == ["tanh"]
    assert {"a", "b"} <= {t.name for t in verdict.tensors}
    assert made.coverage() == 1.0


@EVERY
def test_every_stored_weight_finds_its_code_again_and_every_bias_code_leaves_room(name: str) -> None:
    made = quantized(name)
    for node in made.graph.calls:
        dq = read_dequantize(made.graph, node)
        if (q := read_quantize(made.graph, node)) is not None and q.source.op == "get_attr":
            stored = constant(made.graph.module, q.source)
            assert torch.equal(q.grid.decode(q.grid.encode(stored)), stored)
        elif dq is not None and dq.source.op == "get_attr":
            codes = constant(made.graph.module, dq.source)
            assert codes.dtype == torch.int32
            assert int(codes.long().abs().max()) <= LARGEST


@EVERY
def test_each_layer_adds_its_bias_on_the_grid_of_its_own_products(name: str) -> None:
    graph = quantized(name).graph
    for node in graph.calls:
        parts = [read_dequantize(graph, n) if n.op == "call_function" else None for n in node.all_input_nodes]
        x, w, b = [*parts, None, None][:3]
        if x is None or w is None or b is None or b.grid.format != INT32:
            continue
        assert torch.equal(b.grid.scale.flatten(), (x.grid.scale * w.grid.scale).flatten())


def test_the_float_graph_stays_as_it_was() -> None:
    graph = graph_of("residual")
    before = {name: value.clone() for name, value in graph.constants.items()}
    nodes = [n.format_node() for n in graph]
    quantized("residual", plan_of("residual"))
    assert all(torch.equal(value, before[name]) for name, value in graph.constants.items())
    assert [n.format_node() for n in graph] == nodes


def test_a_shared_layer_has_one_weight_and_a_bias_for_each_input() -> None:
    graph = quantized("one layer twice").graph
    assert {"c.weight", "c.bias@c", "c.bias@c_1"} <= set(graph.constants)
    assert not torch.equal(graph.constants["c.bias@c"], graph.constants["c.bias@c_1"])
    assert "c.bias" in quantized("one layer twice on one value").graph.constants, "one grid needs one bias"


def test_a_model_input_that_is_an_output_comes_back_unrounded() -> None:
    made = quantized("input is output")
    assert made.graph.outputs[0] == "inputs_0"


def test_a_bias_that_could_overflow_raises_its_weights_scales_and_says_so() -> None:
    for name, weight in (("a huge bias", "b.weight"), ("a huge bias in a shared layer", "c.weight")):
        made = quantized(name)
        assert any(weight in note and "was raised" in note and "cannot overflow" in note for note in made.notes)


def test_weights_that_are_all_zero_are_noted() -> None:
    assert [n.partition(":")[0] for n in quantized("all zero").notes] == ["`c.weight` is all zero"]


def test_a_value_without_its_calibration_is_an_error_of_the_model() -> None:
    graph, plan = graph_of("classifier"), plan_of("classifier")
    with pytest.raises(ModelError, match="`inputs_0` was not calibrated"):
        apply(graph, plan, {})


def test_values_that_share_a_grid_have_the_same_one() -> None:
    graph, plan = graph_of("movement"), plan_of("movement")
    grids = activation_grids(plan, graph.constants, calibrate(graph, plan, data(IMAGE)))
    assert grids["a"] is grids["max_pool2d"] is grids["max_pool2d_1"]
    assert "fc.weight" not in grids


# What stays float


def test_integer_inputs_stay_float_and_what_follows_does_not() -> None:
    model = net(lambda s, ids: s.fc(s.e(ids + ids)), e=nn.Embedding(20, 4), fc=nn.Linear(4, 3))
    ids = torch.randint(0, 9, (2, 6))
    graph = prepare(model, (ids,))
    made = quantize_graph(graph, calibration=data((ids,)))
    assert made.plan.slots[graph.inputs[0].name].reason.startswith("an input of int64")
    assert made.plan.slots["add"] == Float(f"`{graph.inputs[0].name}` is not made of float32 reals")
    verified(made, (ids,))


def test_a_model_with_nothing_to_quantize_is_carried_out_in_float() -> None:
    graph = prepare(net(lambda s, x: x.sin()), IMAGE)
    made = quantize_graph(graph, calibration=data(IMAGE))
    assert made.coverage() is None
    assert all(isinstance(slot, Float) for slot in made.plan.slots.values())
    assert not made.grids


@pytest.mark.parametrize("f", [lambda s, x: (s.c(x), s.c.weight), lambda s, x: (s.c(x), s.c.bias * 2)])
def test_a_model_that_returns_a_constant_is_refused(f: object) -> None:
    graph = prepare(net(f, c=conv()), IMAGE)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"the model returns its constant `(c\.weight|mul)`.*leave it out"):
        quantize_graph(graph, calibration=data(IMAGE))


# Edited plans: what a user would do

WORKS: dict[str, tuple[str, dict[str, Slot], dict[Edge, Slot]]] = {
    "another observer": ("classifier", {"relu": own("percentile:99")}, {}),
    "int4 weights": ("classifier", {"fc.weight": Own(INT4.narrow, "mse", WHY, PerChannel(0), symmetric=True)}, {}),
    "one scale for a weight": ("classifier", {"c.weight": Own(INT8.narrow, "minmax", WHY, PerTensor(), symmetric=True)}, {}),
    "a given grid for a weight": ("classifier", {"fc.weight": Fixed(INT8.narrow, 0.01, 0, WHY)}, {}),
    "a given grid for an activation": ("sigmoid", {"a": fixed(0.01, 100)}, {}),
    "a given grid behind a relu": ("residual", {"relu_1": fixed(0.01, 0)}, {}),
    "a given grid within a clamp": ("clamp", {"relu6": fixed(0.02, 0)}, {}),
    "a symmetric activation": ("sigmoid", {"a": own(symmetric=True)}, {}),
    "no fusion": ("residual", {"a": own()}, {}),
    "movement onto a grid of its own": ("movement", {"max_pool2d": fixed(0.01, 7)}, {}),
    "the grid of another value": ("residual", {"b": Same("relu", WHY)}, {}),
    "an edge": ("residual", {}, {Edge("relu", "add"): fixed(0.02, 0)}),
    "an edge into a layer": ("residual", {}, {Edge("relu", "a"): own("entropy")}),
    "an edge for every reader": ("residual", {}, {Edge("relu", "a"): own("mse"), Edge("relu", "add"): fixed(0.02, 3)}),
    "an edge beside an output": ("output is read inside", {}, {Edge("relu", "b"): fixed(0.02, 3)}),
    "an edge from a float value": ("classifier", {"inputs_0": FLOAT}, {Edge("inputs_0", "c"): own()}),
    "a float output": ("classifier", {"fc": FLOAT}, {}),
    "a float output behind a fused addition": ("residual", {"add": FLOAT, "relu_2": FLOAT}, {}),
    "a float layer": ("sigmoid", {"a.weight": FLOAT, "a.bias": FLOAT, "a": FLOAT}, {}),
    "a float input": ("sigmoid", {"inputs_0": FLOAT, "a.bias": FLOAT}, {}),
    "a float activation": ("sigmoid", {"sigmoid": FLOAT, "b.bias": FLOAT}, {}),
    "a shared bias, float in one layer": ("one bias, two weights", {"b.weight": FLOAT, "conv2d_1": FLOAT}, {}),
}


@pytest.mark.parametrize("what", WORKS)
def test_an_edited_plan_is_carried_out_to_the_integer(what: str) -> None:
    name, slots, edges = WORKS[what]
    plan = plan_of(name)
    assert set(slots) <= set(plan.slots)
    edges = edges | ({Edge("a.bias", "conv2d_1"): FLOAT} if "shared bias" in what else {})
    verified(quantized(name, edited(plan, slots, edges)), NETS[name][1])


# Edited plans: whatever a user might do

ANY_SLOT = st.one_of(
    st.just(FLOAT),
    st.builds(own, st.sampled_from(["minmax", "percentile:99", "none"]), symmetric=st.booleans()),
    st.builds(fixed, st.sampled_from([0.01, 0.05]), st.sampled_from([0, 128])),
    st.just(Own(INT8.narrow, "minmax", WHY, PerChannel(0), symmetric=True)),
    st.just(Fixed(INT8.narrow, 0.02, 0, WHY)),
)


def naming(names: list[str]) -> st.SearchStrategy[Slot]:
    name = st.sampled_from(names)
    return st.one_of(
        ANY_SLOT,
        st.builds(Same, name, st.just(WHY)),
        st.builds(Fused, name, st.just(WHY)),
        st.builds(Product, st.tuples(name, name), st.just(INT32), st.just(WHY)),
    )


def arrows(graph: Graph) -> list[Edge]:
    return [Edge(graph.name(value), graph.name(node)) for node in graph.calls for value in node.all_input_nodes]


@settings(max_examples=30)
@given(draw=st.data())
def test_any_edit_is_carried_out_to_the_integer_or_refused(draw: st.DataObject) -> None:
    name = draw.draw(st.sampled_from(["residual", "one layer twice", "sigmoid"]))
    plan, graph = plan_of(name), graph_of(name)
    slot = naming(list(plan.slots))
    slots = draw.draw(st.dictionaries(st.sampled_from(list(plan.slots)), slot, max_size=2))
    edges = draw.draw(st.dictionaries(st.sampled_from(arrows(graph)), slot, max_size=1))
    try:
        made = quantized(name, edited(plan, slots, edges))
    except UsageError:
        return
    verified(made, NETS[name][1])


@pytest.mark.parametrize("lost", plan_of("residual").slots)
def test_a_line_may_be_lost_but_never_in_silence(lost: str) -> None:
    plan = plan_of("residual")
    with pytest.raises(UsageError, match=re.escape(lost)):
        quantized("residual", replace(plan, slots={k: v for k, v in plan.slots.items() if k != lost}))


def test_the_codes_of_an_edge_carry_its_name() -> None:
    edge = Edge("relu", "add")
    made = quantized("residual", edited(plan_of("residual"), edges={edge: fixed(0.02, 0)}))
    assert f"relu@add{CODES}" in {made.graph.name(n) for n in made.graph.calls}
    assert made.grids["relu@add"].scale == Tensor([0.02])


def test_a_given_scale_on_which_the_accumulator_could_overflow_names_the_least_one() -> None:
    small = Fixed(INT8.narrow, 1e-12, 0, WHY)
    with pytest.raises(
        UsageError, match=r"`fc\.weight`: with the scale 1e-12 the int32 code of `fc\.bias` can overflow; the least"
    ):
        quantized("classifier", edited(plan_of("classifier"), {"fc.weight": small}))


def test_a_clamp_that_nothing_passed_in_calibration_gets_the_range_of_its_bounds() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).clamp(0, 6))

    net = Dead().eval()
    with torch.no_grad():
        net.a.bias.fill_(-100.0)
    x = torch.randn(16, 3, 4, 4)
    made = quantize(net, (x[:2],), calibration=[x])
    assert torch.equal(made.grids["clamp"].scale, torch.tensor(6.0) / 255)
    verdict = verify(made, [(200 * x,)])
    assert verdict.equal
    assert not verdict.unverified
