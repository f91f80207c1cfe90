"""A graph, its names, and the working copy that passes edit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from exactq.errors import ModelError, UsageError
from exactq.graphs.graph import Edit, Graph, Input, arguments, attribute_path, describe, op_name, root_of, unique
from exactq.graphs.programs import shapes
from exactq.sources.capture import capture

aten = torch.ops.aten


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)), (torch.randn(1, 3, 8, 8),))


def test_values_have_names_in_order(graph: Graph) -> None:
    assert [graph.name(n) for n in graph] == ["0.weight", "0.bias", "3.weight", "3.bias", "input", "0", "1", "2", "3"]
    assert [graph.name(n) for n in graph.calls] == ["0", "1", "2", "3"]
    assert graph.outputs == ("3",)
    assert {k: tuple(v.shape) for k, v in graph.constants.items()}["3.weight"] == (2, 144)
    assert op_name(graph.node("0")) == "aten.conv2d"


def test_a_bad_name_answers_with_a_close_one(graph: Graph) -> None:
    with pytest.raises(UsageError, match=r"unknown value '0.wieght': did you mean '0.weight'\?"):
        graph.node("0.wieght")


def test_arguments_are_named_and_defaults_filled_in(graph: Graph) -> None:
    found = arguments(graph.node("0"))
    assert list(found) == ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    assert (found["stride"], found["padding"], found["groups"]) == ([1, 1], [0, 0], 1)


def test_the_module_returns_a_tuple_and_holds_no_meta(graph: Graph) -> None:
    (out,) = graph.module(torch.zeros(2, 3, 8, 8))
    assert out.shape == (2, 2)
    assert all(not n.meta for n in graph.module.graph.nodes)


def test_a_listing_has_a_row_a_call(graph: Graph) -> None:
    assert describe(graph, shapes(graph))[:2] == [
        ("0", "aten.conv2d", "input, 0.weight, 0.bias", "1×4×6×6"),
        ("1", "aten.relu", "0", "1×4×6×6"),
    ]


def test_a_graph_that_exists_is_valid(graph: Graph) -> None:
    with pytest.raises(ModelError, match="have no value name"):
        Graph(graph.module, {}, graph.inputs)
    with pytest.raises(ModelError, match="share a name"):
        Graph(graph.module, dict.fromkeys(graph.names, "same"), graph.inputs)
    with pytest.raises(ModelError, match=r"the graph takes \['input'\], but its inputs are \['x'\]"):
        Graph(graph.module, graph.names, (Input("x", (1,), torch.float32),))


def test_an_edit_leaves_the_graph_it_came_from_alone(graph: Graph) -> None:
    before = [(graph.name(n), op_name(n)) for n in graph.calls]
    code, weight = graph.module.code, graph.constants["0.weight"].clone()
    edit = Edit(graph)
    relu = next(n for n in edit if edit.value(n) == "1")
    edit.replace(relu, relu.args[0])  # type: ignore[arg-type]
    edit.set_constant(next(n for n in edit if edit.value(n) == "0.weight"), torch.zeros(4, 3, 3, 3))
    after = edit.freeze()
    assert [after.name(n) for n in after.calls] == ["0", "2", "3"]
    assert after.constants["0.weight"].abs().sum() == 0
    assert [(graph.name(n), op_name(n)) for n in graph.calls] == before
    assert graph.module.code == code
    assert torch.equal(graph.constants["0.weight"], weight)


def test_a_new_value_gets_the_name_it_wants_or_the_next_free_one(graph: Graph) -> None:
    edit = Edit(graph)
    relu = next(n for n in edit if edit.value(n) == "1")
    with edit.graph.inserting_before(relu):
        new = edit.call("1", aten.clamp.default, relu.args[0], 0.0, 6.0)
    assert edit.value(new) == "1_1"
    edit.replace(relu, new, keep_name=True)
    assert edit.value(new) == "1"
    assert op_name(edit.freeze().node("1")) == "aten.clamp"


def test_values_that_nothing_reads_disappear_and_inputs_stay(graph: Graph) -> None:
    edit = Edit(graph)
    last = next(n for n in edit if edit.value(n) == "3")
    with edit.graph.inserting_before(last):
        zero = edit.constant("zero", torch.zeros(1, 2))
        unread = edit.constant("unread", torch.zeros(1))
    assert edit.value(unread) == "unread"
    edit.replace(last, zero)
    after = edit.freeze()
    assert [after.name(n) for n in after] == ["input", "zero"]
    assert after.outputs == ("zero",)


def test_a_constant_may_have_the_name_of_another_ones_folder(graph: Graph) -> None:
    edit = Edit(graph)
    conv = next(n for n in edit if edit.value(n) == "0")
    with edit.graph.inserting_before(conv):
        whole = edit.constant("0", torch.ones(1, 4, 6, 6))  # beside 0.weight
    edit.replace(conv, whole, keep_name=True)
    after = edit.freeze()
    assert after.constants["0"].shape == (1, 4, 6, 6)
    assert after.module(torch.zeros(1, 3, 8, 8))[0].shape == (1, 2)


NAMES = st.lists(st.sampled_from(["a", "b", "0", "weight", "half", "graph", "x-y", "é", "training"]), min_size=1, max_size=3)


@given(st.lists(NAMES.map(".".join), max_size=8))
def test_any_names_of_constants_find_places_that_do_not_collide(names: list[str]) -> None:
    paths: dict[str, torch.Tensor] = {}
    for name in names:
        paths[attribute_path(name, paths)] = torch.zeros(1)
    assert len(paths) == len(names)
    assert sorted(dict(root_of(paths).named_buffers())) == sorted(paths)


def test_paths_that_collide_are_an_error_of_the_model() -> None:
    with pytest.raises(ModelError, match=r"'a.b' collides"):
        root_of({"a": torch.zeros(1), "a.b": torch.zeros(1)})


@given(st.sets(st.sampled_from(["r", "r_1", "r_2", "r_3"])))
def test_a_unique_name_is_free_and_the_wanted_one_if_that_is(taken: set[str]) -> None:
    assert unique("r", taken) not in taken
    assert unique("r", taken - {"r"}) == "r"
