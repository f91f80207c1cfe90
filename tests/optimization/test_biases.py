"""y = f(x) + c is one layer with a bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.nets import conv, net
from torch import Tensor, nn

from exactq.graphs.graph import Graph, arguments, op_name
from exactq.graphs.programs import program
from exactq.optimization.biases import fold_biases
from exactq.optimization.pipeline import optimize
from exactq.sources.capture import capture
from exactq.traces import walk

ONE = nn.Parameter(torch.tensor(0.5))
FOUR = nn.Parameter(torch.tensor([1.0, -2.0, 0.25, 3.0]))


def graph_of(f: Callable[..., Tensor], *inputs: Tensor, **parts: nn.Module) -> Graph:
    model = net(f, **parts)
    model.register_parameter("c", FOUR)
    model.register_parameter("one", ONE)
    return capture(model, inputs)


IMAGE, ROWS = torch.randn(2, 3, 6, 6), torch.randn(2, 5, 3)
FOLDED: dict[str, tuple[Callable[[Any, Tensor], Tensor], Tensor, dict[str, nn.Module]]] = {
    "linear": (lambda s, x: torch.relu(s.a(x) + s.c), ROWS, {"a": nn.Linear(3, 4, bias=False)}),
    "linear with a bias": (lambda s, x: torch.relu(s.a(x) + s.c), ROWS, {"a": nn.Linear(3, 4)}),
    "from the left": (lambda s, x: torch.relu(s.c + s.a(x)), ROWS, {"a": nn.Linear(3, 4)}),
    "one number": (lambda s, x: torch.relu(s.a(x) + s.one), ROWS, {"a": nn.Linear(3, 4)}),
    "convolution": (lambda s, x: torch.relu(s.a(x) + s.c.reshape(4, 1, 1)), IMAGE, {"a": conv(3, 4)}),
    "transposed": (lambda s, x: torch.relu(s.a(x) + s.c.reshape(1, 4, 1, 1)), IMAGE, {"a": nn.ConvTranspose2d(3, 4, 2)}),
    "twice": (lambda s, x: torch.relu(s.a(x) + s.c + s.one), ROWS, {"a": nn.Linear(3, 4)}),
    "one constant for two": (
        lambda s, x: torch.relu(s.a(x) + s.c) + torch.relu(s.b(x) + s.c),
        ROWS,
        {"a": nn.Linear(3, 4), "b": nn.Linear(3, 4, bias=False)},
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_constant_behind_a_layer_is_its_bias(name: str) -> None:
    f, x, parts = FOLDED[name]
    before = graph_of(f, x, **parts)
    after = optimize(before).graph
    layers = [n for n in after.calls if op_name(n).split(".")[1].startswith(("linear", "conv"))]
    assert all(arguments(n)["bias"] is not None for n in layers)
    adds = sum(op_name(n) == "aten.add" for n in after.calls)
    assert adds == (name == "one constant for two")
    # A few sums of float32 numbers below 32 in another order.
    difference = walk(program(after), (x,))[0] - walk(program(before), (x,))[0]
    assert float(difference.abs().max()) <= 4 * 32 * 2**-24
    assert torch.equal(FOUR, torch.tensor([1.0, -2.0, 0.25, 3.0]))


KEPT: dict[str, tuple[Callable[[Any, Tensor], Tensor], Tensor, dict[str, nn.Module]]] = {
    "a number a row": (lambda s, x: s.a(x) + s.c.reshape(4, 1), torch.randn(2, 4, 3), {"a": nn.Linear(3, 4)}),
    "a number a column": (lambda s, x: s.a(x) + s.c, torch.randn(2, 3, 4, 4), {"a": conv(3, 4)}),
    "more dimensions": (lambda s, x: s.a(x) + s.c.reshape(1, 1, 4), torch.randn(2, 3), {"a": nn.Linear(3, 4)}),
    "another reader": (lambda s, x: (lambda y: (y + s.c) * y)(s.a(x)), ROWS, {"a": nn.Linear(3, 4)}),
    "two layers": (lambda s, x: s.a(x) + s.b(x), ROWS, {"a": nn.Linear(3, 4), "b": nn.Linear(3, 4)}),
    "a factor": (lambda s, x: torch.add(s.a(x), s.c, alpha=2), ROWS, {"a": nn.Linear(3, 4)}),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_no_bias_stays(name: str) -> None:
    f, x, parts = KEPT[name]
    graph = graph_of(f, x, **parts)
    assert fold_biases(graph).graph is graph


def test_the_layer_keeps_its_name_unless_the_sum_is_an_output() -> None:
    inside = fold_biases(graph_of(lambda s, x: torch.relu(s.a(x) + s.c), ROWS, a=nn.Linear(3, 4)))
    assert inside.renames == {"add": "a"}
    assert [f.what for f in inside.found] == ["add adds the constant c to a: its bias"]
    last = fold_biases(graph_of(lambda s, x: s.a(x) + s.c, ROWS, a=nn.Linear(3, 4, bias=False)))
    assert last.renames == {"a": "add"}
    assert last.graph.outputs == ("add",)
    assert set(last.graph.constants) == {"a.weight", "c"}
