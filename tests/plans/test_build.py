"""The planner: a line for every value, a sentence in every line, and recipes that do what they say or are refused."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from tests.nets import IMAGE, NETS, conv, graph_of, net, plan_of
from torch import nn

from exactq.errors import UsageError
from exactq.flow import plan_graph, prepare
from exactq.graphs.graph import op_name
from exactq.numerics.formats import INT4, INT8, INT16, UINT4, UINT8
from exactq.plans.plan import Edge, Float, Fused, Own, PerChannel, Product, Same
from exactq.plans.recipes import RECIPES, Match, Recipe, Rule

EVERY = pytest.mark.parametrize("name", NETS)
OTHER = Recipe("mine")


def recipe(*rules: Rule) -> Recipe:
    return Recipe("mine", rules=rules)


def stays_float(match: Match) -> Recipe:
    return recipe(Rule(match, "it is tender", stay_float=True))


@EVERY
@pytest.mark.parametrize("isa", ["avx2", "avx512vnni"])
def test_every_value_has_a_line_and_every_line_a_sentence(name: str, isa: str) -> None:
    graph, plan = graph_of(name), plan_of(name, f"onnxruntime@{isa}")
    assert set(plan.slots) == {graph.name(n) for n in graph}
    assert (plan.target, plan.isa, plan.recipe) == ("onnxruntime", isa, "w8a8")
    assert all(len(slot.reason.split()) >= 3 for slot in (*plan.slots.values(), *plan.edges.values()))


@EVERY
@pytest.mark.parametrize("recipe_name", ["w8a8", "portable"])
def test_the_same_graph_gives_the_same_plan(name: str, recipe_name: str) -> None:
    assert plan_graph(graph_of(name), recipe=recipe_name) == plan_graph(graph_of(name), recipe=recipe_name)


def test_a_residual_network_is_planned_as_its_kernels_work() -> None:
    plan = plan_of("residual")
    kinds = {name: type(slot) for name, slot in plan.slots.items()}
    assert [n for n, k in kinds.items() if k is Fused] == ["c", "a", "add"]
    assert [n for n, k in kinds.items() if k is Product] == ["c.bias", "a.bias", "b.bias"]
    assert not plan.edges
    assert plan.slots["a.weight"] == Own(
        INT8.narrow, plan.slots["a.weight"].observer, plan.slots["a.weight"].reason, PerChannel(0), symmetric=True
    )  # type: ignore[union-attr]


def test_layers_that_share_a_bias_have_an_edge_for_the_second() -> None:
    plan = plan_of("one layer twice")
    assert plan.slots["c.bias"].of == ("inputs_0", "c.weight")  # type: ignore[union-attr]
    assert {e: s.of for e, s in plan.edges.items()} == {Edge("c.bias", "c_1"): ("relu", "c.weight")}  # type: ignore[union-attr]
    assert "shared by c, c_1" in plan.slots["c.weight"].reason


def test_movement_stays_on_the_grid_it_finds() -> None:
    plan = plan_of("movement")
    assert [plan.source(n) for n, s in plan.slots.items() if isinstance(s, Same)] == ["a", "a", "a"]


def test_a_weight_that_is_also_read_elsewhere_says_so() -> None:
    assert re.search(r"; \S+ reads it decoded$", plan_of("weight read decoded").slots["b.weight"].reason)


# Recipes


def test_linear_layers_alone_get_four_bits_and_the_file_stores_eight() -> None:
    plan = plan_graph(graph_of("classifier"), recipe="w8a8-linear-w4")
    weight, layer = plan.slots["c.weight"], plan.slots["fc.weight"]
    assert isinstance(weight, Own)
    assert isinstance(layer, Own)
    assert (weight.format, layer.format, layer.per) == (INT8.narrow, INT4.narrow, PerChannel(0))
    assert "4 bits cost least accuracy per byte there" in layer.reason
    assert "stored in 8 bits, onnxruntime has no 4-bit kernel" in layer.reason
    assert "stored" not in weight.reason
    assert {s.format for n, s in plan.slots.items() if isinstance(s, Own) and "weight" not in n} == {UINT8}
    assert isinstance(plan.slots["max_pool2d"], Same)


@pytest.mark.parametrize(("isa", "name"), [("avx2", "w8a8"), ("avx2", "portable"), ("avx512vnni", "portable")])
def test_weights_that_could_saturate_are_pair_safe_and_say_why(isa: str, name: str) -> None:
    plan = plan_graph(graph_of("depthwise"), target=f"onnxruntime@{isa}", recipe=name)
    alone, pairs = plan.slots["a.weight"], plan.slots["b.weight"]
    assert isinstance(alone, Own)
    assert isinstance(pairs, Own)
    assert (alone.observer, pairs.observer) == ("minmax", "pairsafe"), "a depthwise kernel multiplies alone"
    assert "pair-safe" in pairs.reason
    assert "pair-safe" not in alone.reason


def test_narrow_codes_cannot_saturate() -> None:
    plan = plan_graph(graph_of("classifier"), target="onnxruntime@avx2", recipe="w8a8-linear-w4")
    assert {n: s.observer for n, s in plan.slots.items() if "weight" in n} == {"c.weight": "pairsafe", "fc.weight": "minmax"}  # type: ignore[union-attr]


def test_where_nothing_saturates_nothing_is_pair_safe() -> None:
    plan = plan_of("depthwise", "onnxruntime@avx512vnni")
    assert {s.observer for n, s in plan.slots.items() if "weight" in n} == {"minmax"}  # type: ignore[union-attr]


@EVERY
@pytest.mark.parametrize("wishes", RECIPES.values(), ids=list(RECIPES))
def test_every_recipe_plans_every_network_or_names_the_rule_that_fits_nothing(name: str, wishes: Recipe) -> None:
    if wishes.rules and not any(op_name(node) == "aten.linear" for node in graph_of(name).calls):
        with pytest.raises(
            UsageError, match="the rule for 'op linear' of recipe 'w8a8-linear-w4' matches nothing in this model"
        ):
            plan_graph(graph_of(name), recipe=wishes)
    else:
        target = "fbgemm" if wishes.dynamic else "onnxruntime"
        assert plan_graph(graph_of(name), target=f"{target}@avx2", recipe=wishes).recipe == wishes.name


def test_the_last_rule_that_fits_wins() -> None:
    rules = (Rule(Match(op="conv"), "narrow", INT4.narrow), Rule(Match(name="b"), "wide", INT8.narrow))
    plan = plan_graph(graph_of("residual"), recipe=recipe(*rules))
    assert {n: s.format for n, s in plan.slots.items() if "weight" in n} == {  # type: ignore[union-attr]
        "a.weight": INT4.narrow,
        "b.weight": INT8.narrow,
        "c.weight": INT4.narrow,
    }


def test_a_layer_that_stays_float_says_why_and_so_do_its_constants() -> None:
    plan = plan_graph(graph_of("sigmoid"), recipe=stays_float(Match(name="b")))
    assert plan.slots["b"] == Float("it is tender")
    assert isinstance(plan.slots["b.weight"], Float)
    assert isinstance(plan.slots["b.bias"], Float)


def test_a_layer_is_not_fused_into_an_activation_that_stays_float() -> None:
    plan = plan_graph(graph_of("residual"), recipe=stays_float(Match(name="relu_2")))
    assert isinstance(plan.slots["add"], Own)
    assert plan.slots["relu_2"] == Float("it is tender")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            Rule(Match(op="linear"), "why", INT4),
            "'op linear' of recipe 'mine' matches nothing in this model; its layers with weights",
        ),
        (Rule(Match(name="d"), "why", INT4), "'name d' of recipe 'mine' matches nothing"),
        (Rule(Match(name="relu*"), "why", INT4), "its layers with weights are c (conv2d), a (conv2d), b (conv2d): mend"),
        (Rule(Match(name="layer*"), "why", stay_float=True), "its values are c (conv2d), relu (relu), a (conv2d)"),
    ],
)
def test_a_rule_that_fits_nothing_is_refused(rule: Rule, message: str) -> None:
    with pytest.raises(UsageError) as error:
        plan_graph(graph_of("residual"), recipe=recipe(rule))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (Recipe("mine", activations=INT16), "onnxruntime has no integer kernels for activations in int16; allowed: uint8"),
        (
            Recipe("mine", multiplied=INT16),
            "no integer kernels for activations that layers multiply with in int16; allowed: uint8, uint4",
        ),
        (Recipe("mine", weights=UINT8), r"no integer kernels for weights (of c) in uint8; allowed: int8-narrow, int8"),
        (Recipe("mine", activation_observer="minmx"), "unknown observer 'minmx'"),
        (Recipe("mine", weight_observer="entropy"), "unknown weight observer"),
    ],
)
def test_formats_and_observers_that_do_not_exist_are_refused(wishes: Recipe, message: str) -> None:
    with pytest.raises(UsageError) as error:
        plan_graph(graph_of("residual"), recipe=wishes)
    assert message in str(error.value)


def test_what_layers_multiply_with_may_be_narrower_than_what_is_added() -> None:
    plan = plan_graph(graph_of("residual"), recipe="w4a4")
    formats = {name: slot.format for name, slot in plan.slots.items() if isinstance(slot, Own)}
    assert {n: f for n, f in formats.items() if not n.endswith("weight")} == {
        "inputs_0": UINT8,
        "relu": UINT4,
        "relu_1": UINT4,
        "b": UINT8,
        "relu_2": UINT8,
    }
    assert "4 bits, for layers multiply with it: stored in 8 bits, bounded behind the kernel" in plan.slots["relu"].reason
    assert {f for n, f in formats.items() if n.endswith("weight")} == {INT4.narrow}


def test_what_a_clamp_bounds_from_above_keeps_its_eight_bits() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU6(), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)).eval()
    plan = plan_graph(prepare(net, (torch.zeros(1, 1, 4, 4),)), recipe="w4a4")
    formats = [slot.format for name, slot in plan.slots.items() if isinstance(slot, Own) and not name.endswith("weight")]
    assert formats == [UINT8, UINT8, UINT4, UINT8]


def test_a_target_without_narrow_activations_refuses_the_recipe() -> None:
    with pytest.raises(UsageError, match=r"fbgemm has no integer kernels for activations that layers multiply with in uint4"):
        plan_graph(graph_of("residual"), recipe="w4a4", target="fbgemm")


def test_layers_that_share_a_weight_have_to_agree_on_its_format() -> None:
    with pytest.raises(UsageError, match=r"two formats of `c\.weight`, which these layers share: c int8-narrow, c_1 int4"):
        plan_graph(graph_of("one layer twice"), recipe=recipe(Rule(Match(name="c_1"), "why", INT4)))


# What cannot be in integers


def test_only_float32_reals_have_codes() -> None:
    ids = torch.randint(0, 9, (2, 6))
    graph = prepare(net(lambda s, x: s.fc(s.e(x + x)), e=nn.Embedding(20, 4), fc=nn.Linear(4, 3)), (ids,))
    plan = plan_graph(graph)
    (source,) = (i.name for i in graph.inputs)
    assert plan.slots[source] == Float("an input of int64, not of float32 reals")
    assert plan.slots["add"] == Float(f"`{source}` is not made of float32 reals")
    assert isinstance(plan.slots["e"], Own)
    assert plan.slots["e"].reason.startswith("made in float (onnxruntime has no integer kernel for `embedding`)")


@pytest.mark.parametrize(
    ("f", "name", "reason"),
    [
        (lambda s, x: s.a(x) + 1.5, "add", "one operand is a number, for which there is no grid"),
        (lambda s, x: s.a(x) + torch.ones(8), "add", "one operand is a constant tensor, for which there is no grid"),
        (lambda s, x: F.conv2d(x, s.a(x)[:1, :, :3, :3]), "conv2d", "its weight is computed, not a constant"),
        (lambda s, x: torch.add(s.a(x), x, alpha=2), "add", "QLinearAdd has no alpha"),
        (lambda s, x: torch.tanh(s.a(x)), "tanh", "onnxruntime has no integer kernel for `tanh`"),
        (lambda s, x: F.max_pool2d(x, 2), "max_pool2d", "nothing before or after it is in integers"),
    ],
)
def test_what_stays_float_says_why(f: object, name: str, reason: str) -> None:
    plan = plan_graph(prepare(net(f, a=conv()), IMAGE))  # type: ignore[arg-type]
    assert plan.slots[name] == Float(reason)
