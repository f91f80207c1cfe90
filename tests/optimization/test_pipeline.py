"""All passes together, on a network with everything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from exactq.graphs.graph import Graph, op_name
from exactq.graphs.programs import program
from exactq.optimization.passes import Pass
from exactq.optimization.pipeline import PASSES, Optimized, before_after, optimize
from exactq.sources.capture import capture
from exactq.traces import walk


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.drop, self.conv2, self.bn2 = nn.Dropout2d(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.bn2(self.drop(self.conv2(self.relu(self.bn1(self.conv1(x)))))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer1 = nn.BatchNorm2d(4), nn.Sequential(Block(), Block())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 3), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer1(self.norm(x)))


@pytest.fixture(scope="module")
def optimized() -> tuple[Net, Graph, Optimized]:
    torch.manual_seed(0)
    model = Net()
    for _ in range(3):
        model(torch.randn(8, 4, 6, 6))
    graph = capture(model.eval(), (torch.randn(2, 4, 6, 6),))
    return model, graph, optimize(graph)


def test_the_fixed_point_has_only_what_computes(optimized: tuple[Net, Graph, Optimized]) -> None:
    _, _, result = optimized
    blocks = [f"layer1.{n}.{name}" for n in range(2) for name in ("conv1", "relu", "conv2", "add", "relu_1")]
    assert [result.graph.name(n) for n in result.graph.calls] == ["norm", *blocks, "head.0", "head.1", "head.3", "head.4"]
    assert op_name(result.graph.node("head.4")) == "aten.clamp"
    assert [k.name for k in result.kept] == ["norm"]


def test_the_function_is_the_same(optimized: tuple[Net, Graph, Optimized]) -> None:
    model, _, result = optimized
    x = torch.randn(5, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(walk(program(result.graph), (x,))[0], model(x), rtol=1e-4, atol=1e-5)


def test_renames_lead_from_every_value_that_is_gone_to_one_that_is_there(optimized: tuple[Net, Graph, Optimized]) -> None:
    _, before, result = optimized
    there = {result.graph.name(n) for n in result.graph}
    gone = {before.name(n) for n in before.calls} - there
    assert gone == set(result.renames)
    assert set(result.renames.values()) <= there
    assert result.renames["layer1.0.bn2"] == "layer1.0.conv2"  # over the dropout between them


def test_a_fixed_point_is_a_fixed_point(optimized: tuple[Net, Graph, Optimized]) -> None:
    _, _, result = optimized
    again = optimize(result.graph)
    assert again.graph is result.graph
    assert not again.found
    assert len(again.results) == len(PASSES)


@pytest.mark.parametrize("run", PASSES)
def test_every_pass_leaves_its_graph_alone_and_says_what_it_did(run: Pass, optimized: tuple[Net, Graph, Optimized]) -> None:
    _, graph, _ = optimized
    code, constants = graph.module.code, {k: v.clone() for k, v in graph.constants.items()}
    result = run(graph)
    assert graph.module.code == code
    assert all(torch.equal(v, constants[k]) for k, v in graph.constants.items())
    assert (result.graph is graph) == (not result.found)
    assert all(f.name in f.what and graph.node(f.name) for f in (*result.found, *result.kept))
    assert set(result.renames) <= {f.name for f in result.found}
    outputs = tuple(result.renames.get(name, name) for name in graph.outputs)
    assert result.graph.outputs == outputs
    assert result.graph.inputs == graph.inputs


def test_before_and_after_stand_side_by_side(optimized: tuple[Net, Graph, Optimized]) -> None:
    _, before, result = optimized
    rows = before_after(before, result.graph)
    assert rows[1:3] == [
        ("layer1.0.conv1", "aten.conv2d", "aten.conv2d", "layer1.0.relu"),
        ("layer1.0.bn1", "aten.batch_norm", "", ""),
    ]
    assert rows[-1] == ("head.4", "aten.hardtanh", "aten.clamp", "")
