"""Plans of dynamic recipes: edges whose grid is made at run time, and what cannot have one, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.nets import graph_of, net
from torch import nn

from exactq.errors import UsageError
from exactq.flow import plan_graph, prepare
from exactq.graphs.graph import Graph
from exactq.numerics.formats import INT4, INT8, UINT4, UINT8
from exactq.plans.document import from_yaml, to_yaml
from exactq.plans.plan import Dynamic, Float, Own
from exactq.plans.recipes import Match, Recipe, Rule, recipe_named

TARGETS = ("fbgemm", "x86", "onednn", "qnnpack")


def mlp() -> Graph:
    a, b, c = nn.Linear(6, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
    return prepare(net(lambda self, x: self.c(F.gelu(self.b(F.relu(self.a(x))))), a=a, b=b, c=c), (torch.zeros(2, 6),))


@pytest.mark.parametrize("target", TARGETS)
def test_linear_layers_encode_their_input_and_everything_else_is_float(target: str) -> None:
    plan = plan_graph(mlp(), target=f"{target}@avx2", recipe="dynamic")
    assert {edge.user: slot.format for edge, slot in plan.edges.items() if isinstance(slot, Dynamic)} == dict.fromkeys(
        "abc", UINT8
    )
    weights = {name: slot for name, slot in plan.slots.items() if isinstance(slot, Own)}
    assert set(weights) == {"a.weight", "b.weight", "c.weight"}
    assert {slot.format for slot in weights.values()} == {INT8.narrow}
    saturates = {"onednn": "pairsafe-taps", "qnnpack": "minmax"}.get(target, "pairsafe-depthwise")
    assert {slot.observer for slot in weights.values()} == {saturates}
    assert all(isinstance(slot, Float) for name, slot in plan.slots.items() if name not in weights)
    assert from_yaml(to_yaml(plan)) == plan


def test_rules_of_the_recipe_hold_for_dynamic_layers() -> None:
    rules = (Rule(Match(name="a"), "narrow", INT4.narrow), Rule(Match(name="c"), "it is tender", stay_float=True))
    plan = plan_graph(mlp(), target="fbgemm@avx2", recipe=Recipe("mine", rules=rules, dynamic=True))
    assert plan.slots["a.weight"].format == INT4.narrow  # type: ignore[union-attr]
    assert plan.slots["c"] == Float("it is tender")
    assert [edge.user for edge in plan.edges] == ["a", "b"]


def test_a_weight_that_is_computed_stays_float() -> None:
    plan = plan_graph(graph_of("residual"), target="fbgemm@avx2", recipe="dynamic")
    assert not plan.edges
    doubled = net(lambda self, x: F.linear(x, self.a.weight * x.sum()), a=nn.Linear(4, 4))
    plan = plan_graph(prepare(doubled, (torch.zeros(2, 4),)), target="fbgemm@avx2", recipe="dynamic")
    assert not plan.edges
    assert Float("its weight is computed, not a constant") in plan.slots.values()


@pytest.mark.parametrize("target", ["onnxruntime", "inductor"])
def test_a_target_without_dynamic_layers_says_who_has_them(target: str) -> None:
    with pytest.raises(UsageError) as error:
        plan_graph(mlp(), target=f"{target}@avx2", recipe="dynamic")
    assert str(error.value) == (
        f"{target} has no layers that quantize their input at run time, which recipe 'dynamic' asks for; targets that have "
        "them: fbgemm, x86, onednn, qnnpack"
    )


def test_formats_that_no_kernel_takes_are_refused() -> None:
    with pytest.raises(UsageError, match="fbgemm has no integer kernels for activations in int8; allowed: uint8"):
        plan_graph(mlp(), target="fbgemm@avx2", recipe=Recipe("mine", activations=INT8, dynamic=True))
    with pytest.raises(UsageError, match="'mine' is dynamic and has `multiplied`: dynamic layers read `activations` alone"):
        Recipe("mine", multiplied=UINT4, dynamic=True)


def test_a_file_may_be_dynamic(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("dynamic: true")
    assert recipe_named(str(path)) == Recipe("mine", dynamic=True)
    path.write_text("dynamic: 1")
    with pytest.raises(UsageError, match="dynamic is 1; allowed: true, false"):
        recipe_named(str(path))
