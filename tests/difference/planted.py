"""Pairs of executions whose difference is known, because it was planted: a grid, kernel or program is another in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

import exactq
from exactq.difference import Execution
from exactq.difference.sides import side
from exactq.graphs.graph import Edit, Graph
from exactq.graphs.programs import program
from exactq.graphs.qdq import CODES, REAL, read_quantize
from exactq.quantized import Quantized
from exactq.targets import TARGETS
from exactq.traces import Program, Step


class Net(nn.Module):
    """Two convolutions and a linear layer, a relu6 behind the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Linear(8 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.first(x))
        return self.last(nn.functional.relu(self.second(x)).flatten(1))  # type: ignore[no-any-return]


def inputs(size: int = 16, seed: int = 5) -> tuple[Tensor, ...]:
    return (torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),)


@cache
def made(target: str = "fbgemm", recipe: str = "w8a8") -> Quantized:
    torch.manual_seed(1)
    model = Net().eval()
    with torch.no_grad():
        model.first.weight *= 10  # beyond 6
    return exactq.quantize(model, inputs(2), calibration=[inputs(32, 3)], target=target, recipe=recipe)


def qdq(graph: Graph, name: str = "changed") -> Execution:
    return Execution(name, graph, program(graph))


def lowered(graph: Graph, target: str, isa: str = "avx512vnni") -> Execution:
    return Execution(f"{target}@{isa}", graph, TARGETS[target].lower(graph, isa))


def weights_scaled(graph: Graph, factor: float | Callable[[Tensor], Tensor], layer: str = "") -> Graph:
    """The graph with the weights' steps that much larger, as two formulas for one range have them, or as a function says."""
    change = factor if callable(factor) else lambda scale: scale * factor
    edit = Edit(graph)
    scales = set()
    for node in graph.calls:
        q = read_quantize(graph, node)
        if q is not None and q.source.op == "get_attr" and graph.name(node).startswith(layer):
            scales.add(graph.name(node.args[1]) if q.axis is not None else graph.name(node))
    for node in edit:
        if node.op == "get_attr" and edit.value(node) in scales:
            edit.set_constant(node, change(edit.tensor(node)))
    return edit.freeze()


def regridded(
    graph: Graph,
    value: str,
    *,
    scale: float = 1.0,
    step: float | None = None,
    zero: int | None = None,
    hi: int | None = None,
) -> Graph:
    """The graph with another grid for one value: steps that much larger or of that size, another zero, codes up to `hi`."""
    edit = Edit(graph)
    for node in edit:
        if node.op == "call_function" and edit.value(node) in (value + CODES, value + REAL):
            source, old, origin, lo, end, dtype = node.args
            size = old * scale if step is None else step  # type: ignore[operator]
            node.args = (source, size, origin if zero is None else zero, lo, end if hi is None else hi, dtype)
    return edit.freeze()


def without_codes(graph: Graph, *values: str) -> Graph:
    """The graph with these values left real."""
    edit = Edit(graph)
    nodes = {edit.value(n): n for n in edit}
    for value in values:
        nodes[value + REAL].replace_all_uses_with(nodes[value])
    return edit.freeze()


def unbounded(graph: Graph, value: str) -> Graph:
    """The graph with a clamp whose bounds are so far off that it does nothing."""
    edit = Edit(graph)
    for node in edit:
        if node.op == "call_function" and edit.value(node) == value:
            node.args = (node.args[0], -1e30, 1e30)
    return edit.freeze()


def biased(graph: Graph, layer: str, value: float) -> Graph:
    """The graph with that bias in every channel of a layer."""
    edit = Edit(graph)
    for node in edit:
        if node.op == "get_attr" and edit.value(node) == f"{layer}.bias":
            edit.set_constant(node, torch.full_like(edit.tensor(node), value))
    return edit.freeze()


def stepwise(given: Execution, change: Callable[[Step], Step]) -> Execution:
    """The execution with some of its program's steps changed."""
    steps = tuple(change(step) for step in given.program.steps)
    return replace(given, name=f"{given.name}, changed", program=Program(given.program.inputs, steps, given.program.outputs))


def in_double(given: Execution, layer: str = "second") -> Execution:
    """The execution with one convolution's sums in float64, rounded once: another order of summation."""
    read = side(given, given.graph, {})
    weight, bias = read.weights[layer].reals, read.biases[layer]

    def change(step: Step) -> Step:
        run = lambda x, *_: nn.functional.conv2d(x.double(), weight, bias).float()  # noqa: E731
        return replace(step, run=run) if step.name == layer else step

    return stepwise(given, change)
