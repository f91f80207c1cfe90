"""The module that torch.compile is given: a file's calls as Q/DQ operators, placed so that Inductor's patterns find them.

Each reader of codes has a dequantize node of its own, weights are decoded with a scale a channel, and convolutions are followed
by the relu and the quantize node that they are fused with. An average pool keeps its grid, so it is asked for the mean of codes
on the grid of scale 1: sums of integers are exact in whatever order the compiled loop takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from exactq.graphs.graph import Graph, constant, root_of
from exactq.numerics.formats import Grid
from exactq.targets.pytorch.calls import (
    Adaptive,
    Average,
    Call,
    Concat,
    Dequantize,
    Function,
    Largest,
    Layer,
    Mean,
    Moved,
    Pair,
    Quantize,
    Real,
)

SMALL = 16
"""Inductor multiplies one row by so few columns in float (_inductor/decomposition.py: addmm): small layers get it twice."""

_qd: Any = torch.ops.quantized_decomposed
_aten: Any = torch.ops.aten


def compilable(graph: Graph, made: Sequence[Call], kept: Sequence[str] = ()) -> fx.GraphModule:
    """The module of these calls; behind the graph's outputs it returns the codes of the values in `kept`."""
    return _Making(graph).module(made, kept)


class _Making:
    """A module that grows call by call; `values` are the nodes of what was made, by name."""

    def __init__(self, graph: Graph) -> None:
        self.given, self.graph = graph, fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.values = {i.name: self.graph.placeholder(f"input_{n}") for n, i in enumerate(graph.inputs)}

    def module(self, made: Sequence[Call], kept: Sequence[str]) -> fx.GraphModule:
        for call in made:
            self.values[call.name] = self._node(call)
        self.graph.output(tuple(self.values[name] for name in (*self.given.outputs, *kept)))
        return fx.GraphModule(root_of(self.constants), self.graph)

    def _node(self, call: Call) -> fx.Node:
        read = [self.values[name] for name in call.inputs]
        match call.what:
            case Quantize(y):
                return self._encoded(read[0], y)
            case Dequantize(x):
                return self._decoded(read[0], x)
            case Layer():
                return self._layer(call.what, *read)
            case Pair(op, a, b, y, relu):
                total = self._call(getattr(_aten, op).Tensor, self._decoded(read[0], a), self._decoded(read[1], b))
                return self._encoded(self._call(_aten.relu.default, total) if relu else total, y)
            case Concat(xs, y, axis):
                parts = [self._decoded(node, x) for node, x in zip(read, xs, strict=True)]
                return self._encoded(self._call(_aten.cat.default, parts, axis), y)
            case Function(op, x, y, slope):
                more = () if slope is None else (slope,)
                return self._encoded(self._call(getattr(_aten, op).default, self._decoded(read[0], x), *more), y)
            case Average(x=x) | Adaptive(x=x) | Mean(x=x):
                steps = Grid(x.format, torch.ones(()), x.zero)
                return self._encoded(self._again(call.covers[0], lambda _: self._decoded(read[0], steps)), steps)
            case Moved() | Largest():
                grid = call.grid
                assert grid is not None
                return self._encoded(self._again(call.covers[0], lambda _: self._decoded(read[0], grid)), grid)
            case Real("constant", run):
                return self._constant(run())
        return self._again(call.name, self._value)

    def _layer(self, layer: Layer, codes: fx.Node, added: fx.Node | None = None) -> fx.Node:
        count, fmt = len(layer.weight), layer.w.format
        scale = layer.w.scale.flatten().expand(count) if layer.w.scale.numel() == 1 else layer.w.scale.flatten()
        zeros = torch.zeros(count, dtype=torch.int64)
        stored = (self._constant(t) for t in (layer.weight.contiguous(), scale.contiguous(), zeros))
        weight = self._call(_qd.dequantize_per_channel.default, *stored, 0, fmt.lo, fmt.hi, fmt.dtype)
        bias = None if layer.bias is None else self._constant(layer.bias.to(torch.float32))
        small = not layer.rank and (max(layer.weight.shape) <= SMALL or 1 in layer.weight.shape)
        x = self._decoded(self._call(_aten.cat.default, [codes, codes]) if small else codes, layer.x)
        if layer.rank:
            p, op = layer.places, getattr(_aten, f"conv{layer.rank}d").default
            places = [list(p[name]) for name in ("stride", "padding", "dilation")]
            made = self._call(op, x, weight, bias, *places, p["groups"])
        else:
            made = self._call(_aten.linear.default, x, weight, bias)
        if added is not None and layer.added is not None:
            made = self._call(_aten.add.Tensor, made, self._decoded(added, layer.added))
        made = self._encoded(self._call(_aten.relu.default, made) if layer.relu else made, layer.y)
        return self._call(getitem, self._call(_aten.chunk.default, made, 2), 0) if small else made

    def _again(self, name: str, value: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """The operator of the value `name` once more, on what `value` makes of those it reads."""
        node = self.given.node(name)
        made = self.graph.node_copy(node, value)
        if node.target is _aten.view.default:
            made.target = _aten.reshape.default  # a value is its elements, so `view` never refuses strides
        if node.target is _aten.max_pool3d.default:
            # Between codes Inductor takes it for a pool of images and fails (torch 2.13, qmaxpool2d): a bound that is none
            # stands between it and its pattern.
            made = self._call(_aten.clamp_max.default, made, inf)
        return made

    def _value(self, node: fx.Node) -> fx.Node:
        if node.op == "get_attr":
            return self._constant(constant(self.given.module, node))
        return self.values[self.given.name(node)]

    def _decoded(self, codes: fx.Node, grid: Grid) -> fx.Node:
        return self._call(_qd.dequantize_per_tensor.default, codes, *_at(grid))

    def _encoded(self, reals: fx.Node, grid: Grid) -> fx.Node:
        return self._call(_qd.quantize_per_tensor.default, reals, *_at(grid))

    def _call(self, target: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(target, args)

    def _constant(self, value: Tensor) -> fx.Node:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = value
        return self.graph.create_node("get_attr", name)


def _at(grid: Grid) -> tuple[Any, ...]:
    return grid.scale.item(), int(grid.zero), grid.format.lo, grid.format.hi, grid.format.dtype
