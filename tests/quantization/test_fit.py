"""A plan that cannot be carried out is refused before anything is calibrated, by its line, with what to write instead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.nets import NETS, edited, graph_of, net, plan_of
from torch import nn

from exactq.errors import UsageError
from exactq.flow import plan_graph, prepare, quantize_graph
from exactq.numerics.formats import INT8, INT32, UINT2, UINT4, UINT8
from exactq.plans.plan import Dynamic, Edge, Fixed, Float, Fused, Own, PerChannel, Plan, Product, Same, Slot
from exactq.quantization.fit import plan_fits
from exactq.targets import target_named

WHY = "asked for"
FLOAT = Float(WHY)
CODES = Own(UINT8, "minmax", WHY)
WEIGHTS = Own(INT8.narrow, "minmax", WHY, PerChannel(0), symmetric=True)

REFUSED: list[tuple[str, dict[str, Slot], dict[Edge, Slot], str]] = [
    # Names
    ("residual", {"rellu": CODES}, {}, "unknown value in the plan 'rellu': did you mean 'relu'?"),
    ("residual", {"relu": Own(UINT8, "minmx", WHY)}, {}, "`relu`: unknown observer 'minmx': did you mean 'minmax'?"),
    (
        "residual",
        {"a.weight": Own(INT8.narrow, "entropy", WHY, symmetric=True)},
        {},
        "unknown weight observer of `a.weight` 'ent",
    ),
    # Formats
    ("residual", {"relu": Own(INT8, "minmax", WHY)}, {}, "`relu` cannot be in int8: onnxruntime has integer kernels for uint8"),
    (
        "residual",
        {"b": Fixed(UINT2, 0.1, 0, WHY)},
        {},
        "`b` cannot be in uint2: onnxruntime has integer kernels for uint8, uint4",
    ),
    ("residual", {"a.weight": Own(UINT8, "minmax", WHY, symmetric=True)}, {}, "the weights `a.weight` cannot be in uint8"),
    ("residual", {}, {Edge("relu", "a"): Own(INT8, "minmax", WHY)}, "the edge relu -> a cannot be in int8"),
    # Granularity
    ("residual", {"b": Own(UINT8, "minmax", WHY, PerChannel(1))}, {}, "`b` is an activation and has one scale per channel"),
    (
        "residual",
        {"a.weight": Own(INT8, "minmax", WHY, PerChannel(1), symmetric=True)},
        {},
        "index of axis 0, the output channels",
    ),
    ("residual", {"a.weight": Own(INT8, "minmax", WHY)}, {}, "`a.weight`: weights live on symmetric grids, write `symmetric"),
    ("residual", {"a.weight": Fixed(INT8, 0.1, 3, WHY)}, {}, "`a.weight`: weights live on grids whose zero is 0, not 3"),
    # Constants
    ("residual", {"a.bias": WEIGHTS}, {}, "`a.bias` is a bias: its line has to be `product`, or `float`"),
    ("residual", {"a.weight": Same("b.weight", WHY)}, {}, "`a.weight` is a constant; its line has to be own, fixed or float"),
    ("transposed", {"a.weight": WEIGHTS}, {}, "`a.weight` is a constant; its line has to be float: no integer kernel reads it"),
    # Floats beside codes
    ("residual", {"a.bias": FLOAT}, {}, "`a.bias` is float, but the weight, the input and the output of `a` are codes"),
    (
        "residual",
        {"a.weight": FLOAT},
        {},
        "on the grid of the products of `a`, but `a.weight` is float: make `a.bias` float too",
    ),
    ("sigmoid", {"sigmoid": FLOAT}, {}, "of the products of `b`, but `sigmoid` has no codes: make `b.bias` float too"),
    (
        "movement",
        {"a": FLOAT},
        {},
        "`max_pool2d` is on the grid of `a`, but `a` is float and has none: make `max_pool2d` float",
    ),
    ("movement", {"max_pool2d": Same("fc.weight", WHY)}, {}, "on the grid of `fc.weight`, but `fc.weight` is a constant"),
    ("residual", {"b": Same("c", WHY)}, {}, "`b` is on the grid of `c`, but `c` is in the accumulator of relu and has none"),
    ("residual", {"a": FLOAT}, {}, "`a` is float between codes, and onnxruntime makes it and `relu_1` in one integer kernel"),
    ("residual", {"add": FLOAT}, {}, "`add` is float between codes, and onnxruntime makes it and `relu_2` in one integer"),
    # Products
    (
        "residual",
        {"b": Product(("relu", "b.weight"), INT32, WHY)},
        {},
        "`b` is no bias: only biases live on the grid of a product",
    ),
    (
        "residual",
        {"a.bias": Product(("relu_1", "a.weight"), INT32, WHY)},
        {},
        "products of `relu` and `a.weight`, not of `relu_1`",
    ),
    (
        "residual",
        {"a.bias": Product(("relu", "a.weight"), INT8, WHY)},
        {},
        "`a.bias` is in int8: the accumulator it is added to",
    ),
    # Fusion
    ("residual", {"relu_1": FLOAT}, {}, "the plan fuses `a` into `relu_1`, which is float: the kernel makes codes"),
    ("residual", {"relu_1": Same("relu", WHY)}, {}, "into `relu_1`, which is on the grid of relu: the kernel makes codes"),
    ("residual", {"a": Fused("b", WHY)}, {}, "the plan fuses `a` into `b`, which does not read it"),
    ("sigmoid", {"a": Fused("sigmoid", WHY)}, {}, "the plan fuses `a` into `sigmoid`, for which onnxruntime has no kernel"),
    ("residual", {"relu_1": Fixed(UINT8, 0.1, 9, WHY)}, {}, "whose grid does not end at the bounds of `relu_1`"),
    (
        "residual",
        {"relu_1": Own(UINT8, "minmax", WHY, symmetric=True)},
        {},
        "whose grid does not end at the bounds of `relu_1`",
    ),
    ("clamp", {"relu6": Fixed(UINT8, 0.2, 0, WHY)}, {}, "whose grid does not end at the bounds of `relu6`"),
    ("clamp", {"relu6": Own(UINT4, "minmax", WHY)}, {}, "whose grid does not end at the bounds of `relu6`"),
    # Edges
    ("residual", {}, {Edge("relu", "b"): CODES}, "the edge relu -> b: `b` does not read `relu`"),
    ("residual", {}, {Edge("relu", "a"): FLOAT}, "the edge relu -> a needs a grid of its own or a fixed one, not float"),
    ("residual", {}, {Edge("a", "relu_1"): CODES}, "the edge a -> relu_1: `a` is only in the accumulator, nobody can read it"),
    ("residual", {}, {Edge("relu_1", "b"): CODES}, "`b` alone reads `relu_1`, so give `relu_1` itself this grid"),
    ("residual", {}, {Edge("a.weight", "a"): WEIGHTS}, "a constant has edges only as a bias, with `product` or `float`"),
    ("input is output", {}, {Edge("inputs_0", "c"): CODES}, "`c` alone reads `inputs_0`, so give `inputs_0` itself this grid"),
]


@pytest.mark.parametrize(("name", "slots", "edges", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_no_kernel_does_is_refused_by_its_line(
    name: str, slots: dict[str, Slot], edges: dict[Edge, Slot], message: str
) -> None:
    def never() -> object:
        raise AssertionError("a plan is checked before the data are touched")
        yield

    with pytest.raises(UsageError) as error:
        quantize_graph(graph_of(name), plan=edited(plan_of(name), slots, edges), calibration=never())  # type: ignore[arg-type]
    assert message in str(error.value)


AT_RUN_TIME = Dynamic(UINT8, WHY)
DYNAMIC: list[tuple[str, dict[str, Slot], dict[Edge, Slot], str]] = [
    ("onnxruntime", {}, {Edge("relu", "a"): AT_RUN_TIME}, "onnxruntime makes a grid at run time for no operator, not `a`"),
    ("fbgemm", {}, {Edge("relu", "a"): AT_RUN_TIME}, "fbgemm makes a grid at run time for linear, not `a`"),
    ("fbgemm", {"add": AT_RUN_TIME}, {}, "`add` is dynamic: a grid is made at run time for a layer that reads"),
]
LINEAR: list[tuple[dict[str, Slot], Slot, str]] = [
    ({"fc.weight": FLOAT}, AT_RUN_TIME, "is dynamic, but `fc.weight` is float: give the weights a grid of their own"),
    ({"fc.weight": Fixed(INT8, 0.1, 3, WHY)}, AT_RUN_TIME, "weights of a dynamic layer live on grids whose zero is 0, not 3"),
    ({"fc": Fused("relu", WHY), "relu": CODES}, AT_RUN_TIME, "so `fc` is reals and in no accumulator"),
    ({}, Dynamic(INT8, WHY), "the edge x -> fc cannot be in int8: fbgemm has integer kernels for uint8"),
]


@pytest.mark.parametrize(("target", "slots", "edges", "message"), DYNAMIC, ids=[message for *_, message in DYNAMIC])
def test_a_grid_at_run_time_is_for_layers_that_make_one(
    target: str, slots: dict[str, Slot], edges: dict[Edge, Slot], message: str
) -> None:
    plan = plan_of("residual", f"{target}@avx2")
    with pytest.raises(UsageError) as error:
        plan_fits(graph_of("residual"), edited(plan, slots, edges), target_named(f"{target}@avx2")[0].ability("avx2"))
    assert message in str(error.value)


@pytest.mark.parametrize(("slots", "slot", "message"), LINEAR, ids=[message for *_, message in LINEAR])
def test_a_dynamic_layer_needs_weights_on_a_symmetric_grid_and_gives_reals(
    slots: dict[str, Slot], slot: Slot, message: str
) -> None:
    graph = prepare(net(lambda self, x: self.fc(x).relu(), fc=nn.Linear(4, 3)), (torch.zeros(2, 4),))
    (name,) = (i.name for i in graph.inputs)
    plan = plan_graph(graph, target="fbgemm@avx2", recipe="dynamic")
    with pytest.raises(UsageError) as error:
        plan_fits(graph, edited(plan, slots, {Edge(name, "fc"): slot}), target_named("fbgemm@avx2")[0].ability("avx2"))
    assert message in str(error.value).replace(name, "x")


ADDED: list[tuple[str, dict[str, Slot], str]] = [
    ("onednn", {"b": FLOAT}, "`b` is float between codes, and onednn makes it and `add` in one integer kernel"),
    ("inductor", {"add": FLOAT, "relu_2": FLOAT}, "the plan fuses `b` into `add`, which is float: the kernel makes codes"),
    (
        "onednn",
        {"relu": FLOAT, "c": FLOAT, "a.weight": FLOAT, "a": FLOAT, "relu_1": CODES},
        "whose other operand `relu` has no",
    ),
    ("fbgemm", {"b": Fused("add", WHY)}, "the plan fuses `b` into `add`, for which fbgemm has no kernel"),
]


@pytest.mark.parametrize(("target", "slots", "message"), ADDED, ids=[message for *_, message in ADDED])
def test_a_sum_that_no_kernel_does_is_refused_by_its_line(target: str, slots: dict[str, Slot], message: str) -> None:
    plan = plan_of("residual", f"{target}@avx2")
    with pytest.raises(UsageError) as error:
        plan_fits(graph_of("residual"), edited(plan, slots, {}), target_named(f"{target}@avx2")[0].ability("avx2"))
    assert message in str(error.value)


def test_a_convolution_in_front_of_a_sum_may_have_a_grid_of_its_own() -> None:
    plan = edited(plan_of("residual", "onednn@avx2"), {"b": CODES}, {})
    plan_fits(graph_of("residual"), plan, target_named("onednn@avx2")[0].ability("avx2"))


def without(plan: Plan, *names: str) -> Plan:
    """The plan without these lines, and without its edges."""
    return replace(plan, slots={k: v for k, v in plan.slots.items() if k not in names}, edges={})


def fit(name: str, plan: Plan) -> None:
    plan_fits(graph_of(name), plan, target_named("onnxruntime")[0].ability(plan.isa))


def test_a_shared_bias_asks_for_an_edge() -> None:
    with pytest.raises(UsageError, match=r"write the edge 'c\.bias -> c_1': \{product: \[relu, c\.weight\], format: int32\}"):
        fit("one layer twice", without(plan_of("one layer twice")))


def test_missing_lines_are_counted() -> None:
    short = without(plan_of("residual"), "relu_2", "add", "b.bias")
    with pytest.raises(UsageError, match=r"the plan has no line for `b\.bias` \(3 missing\): make it anew"):
        fit("residual", short)


@pytest.mark.parametrize("name", NETS)
def test_what_the_planner_makes_always_fits(name: str) -> None:
    for target in ("onnxruntime@avx2", "onnxruntime@avx512vnni", "inductor@avx2"):
        plan = plan_of(name, target)
        plan_fits(graph_of(name), plan, target_named(target)[0].ability(plan.isa))
