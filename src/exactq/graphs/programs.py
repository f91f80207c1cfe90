"""A graph as a program of float steps, and what follows from walking it: shapes, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from exactq.errors import ModelError
from exactq.graphs.graph import Graph, arguments, constant, op_name
from exactq.traces import Program, Step, Trace, trace

COMPUTE = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")
"""The operators with a weight, whose multiply-accumulates count."""


def is_compute(node: fx.Node) -> bool:
    """Whether the call is a convolution or linear layer with a constant weight."""
    return op_name(node).removeprefix("aten.") in COMPUTE and _source(node).op == "get_attr"


def _source(node: fx.Node) -> fx.Node:
    """The node whose values are the weight: the constant itself, or the codes below its Q/DQ pair."""
    weight: fx.Node = arguments(node)["weight"]
    while weight.op == "call_function" and op_name(weight).startswith("quantized_decomposed."):
        weight = weight.all_input_nodes[0]
    return weight


def program(graph: Graph) -> Program:
    """The graph's calls as float steps, on whatever the ATen operators themselves do."""
    steps = []
    for node in graph.calls:
        run, reads = bind(graph, node)
        steps.append(Step(graph.name(node), run, reads, op_name(node)))
    return Program(tuple(i.name for i in graph.inputs), tuple(steps), graph.outputs)


def bind(graph: Graph, node: fx.Node, free: Collection[str] = ()) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """A call as a function of its non-constant inputs and the constants in `free` alone, and their value names in order."""
    reads = tuple(n for n in node.all_input_nodes if n.op != "get_attr" or graph.name(n) in free)
    constants = {n: constant(graph.module, n) for n in node.all_input_nodes if n not in reads}
    target = _target(node)

    def run(*values: Any) -> Any:
        env = constants | dict(zip(reads, values, strict=True))
        args = fx.node.map_arg(node.args, env.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, env.__getitem__)
        return target(*args, **kwargs)

    return run, tuple(graph.name(n) for n in reads)


def _target(node: fx.Node) -> Any:
    """What a call runs: a value is its elements, not their order in memory, so `view` never refuses strides."""
    return torch.ops.aten.reshape.default if node.target is torch.ops.aten.view.default else node.target


def example_inputs(graph: Graph, batch: int = 1, seed: int = 0) -> tuple[Tensor, ...]:
    """Random inputs of the graph's shapes: standard normal reals, zeros for integers; `batch` where it is free."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, *i.shape[1:]) if i.batch else i.shape for i in graph.inputs]
    return tuple(
        torch.randn(s, generator=generator).to(i.dtype) if i.dtype.is_floating_point else torch.zeros(s, dtype=i.dtype)
        for s, i in zip(shapes, graph.inputs, strict=True)
    )


def float_trace(graph: Graph, inputs: tuple[Tensor, ...]) -> Trace:
    """Every value that the float graph computes on `inputs`."""
    with torch.no_grad():
        return {k: v for k, v in trace(program(graph), inputs).items() if isinstance(v, Tensor)}


def fake_values(graph: Graph, batch: int = 1) -> dict[str, Tensor]:
    """Value name -> a tensor without data, with the dtype, shape and strides of the value; `batch` where it is free.

    Raises `ModelError` for an operator that refuses these shapes, or whose shape depends on data.
    """
    found: dict[fx.Node, Any] = {}
    mode = FakeTensorMode()
    for node in graph:
        if node.op == "get_attr":
            found[node] = mode.from_tensor(constant(graph.module, node))
    with mode:
        places = [n for n in graph if n.op == "placeholder"]
        for node, spec in zip(places, graph.inputs, strict=True):
            found[node] = torch.empty((batch, *spec.shape[1:]) if spec.batch else spec.shape, dtype=spec.dtype)
        for node in graph.calls:
            target = _target(node)
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), found.__getitem__)
            try:
                found[node] = target(*args, **kwargs)
            except Exception as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                what = f"'{graph.name(node)}' ({op_name(node)})"
                raise ModelError(f"{what} does not run at batch size {batch}: {reason}") from error
    return {graph.name(n): found[n] for n in graph if isinstance(found[n], Tensor)}


def shapes(graph: Graph, batch: int = 1) -> dict[str, tuple[int, ...]]:
    """Value name -> shape at a batch size; inputs and constants included, nothing is computed."""
    return {name: tuple(value.shape) for name, value in fake_values(graph, batch).items()}


def multiply_accumulates(graph: Graph, shape_of: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Layer name -> multiply-accumulates for one sample (batch 1 shapes) of each convolution and linear layer."""
    counts = {}
    for node in graph.calls:
        if not is_compute(node):
            continue
        weight = shape_of[graph.name(_source(node))]
        transposed = "transpose" in op_name(node)
        read = node.args[0] if transposed else node
        assert isinstance(read, fx.Node)
        # Each output element (transposed: each input element) meets one weight of each tap and channel of its group.
        counts[graph.name(node)] = prod(shape_of[graph.name(read)]) * prod(weight[1:])
    return counts
