"""A constant added behind a layer is its bias: y = f(x) + c, so b' = b + c, for each channel.

The layer is a convolution (plain, grouped, transposed) or linear, with or without a bias; c is one number or one a channel. The
sum is made in float64 and rounded once. Files from other tools write a layer's bias as an addition of its own, and so does who
writes `x @ w + b`. The layer keeps its name; readers of the sum read the layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from exactq.graphs.graph import Edit, Graph, arguments, op_name
from exactq.graphs.programs import fake_values, is_compute
from exactq.optimization.passes import Found, PassResult

aten = torch.ops.aten


def fold_biases(graph: Graph) -> PassResult:
    """The graph with each such addition in its layer's bias; where the sum is an output, the layer takes that name."""
    edit = Edit(graph)
    sums = [node for node in edit if node.op == "call_function" and node.target is aten.add.Tensor]
    if not sums:
        return PassResult("biases", graph)
    shapes = {name: tuple(value.shape) for name, value in fake_values(graph, batch=2).items()}
    outputs, found = graph.outputs, []
    renames: dict[str, str] = {}
    for node in sums:
        layer, constant = _operands(edit, node)
        if layer is None or constant is None:
            continue
        name, own = edit.value(node), edit.value(layer)
        bias = _per_channel(edit.tensor(constant), layer, shapes[own])
        if bias is None or shapes[name] != shapes[own]:
            continue
        _add(edit, layer, bias, constant)
        found.append(Found(name, f"{name} adds the constant {edit.value(constant)} to {own}: its bias"))
        edit.replace(node, layer)
        if name in outputs:
            edit.name(layer, name)
        renames |= {own: name} if name in outputs else {name: own}
    return PassResult("biases", edit.freeze(), tuple(found), renames) if found else PassResult("biases", graph)


def _operands(edit: Edit, node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The layer and the constant that are added, in either order, if that is all: no factor, and no other reader."""
    args = arguments(node)
    for layer, other in ((args["self"], args["other"]), (args["other"], args["self"])):
        plain = all(isinstance(n, fx.Node) and n.op == kind for n, kind in ((layer, "call_function"), (other, "get_attr")))
        if plain and args["alpha"] == 1 and is_compute(layer) and len(layer.users) == 1:
            own = arguments(layer)["bias"]
            floats = edit.tensor(other).is_floating_point()
            return (layer, other) if floats and (own is None or own.op == "get_attr") else (None, None)
    return None, None


def _per_channel(value: Tensor, layer: fx.Node, shape: tuple[int, ...]) -> Tensor | None:
    """The constant as one number a channel (of the last dimension for linear, else of the second), or None if it is not."""
    axis = len(shape) - 1 if op_name(layer) == "aten.linear" else 1
    if value.ndim > len(shape):
        return None
    sizes = [1] * (len(shape) - value.ndim) + list(value.shape)
    if any(size != 1 for n, size in enumerate(sizes) if n != axis):
        return None
    return value.reshape(-1).expand(shape[axis]).contiguous()


def _add(edit: Edit, layer: fx.Node, bias: Tensor, constant: fx.Node) -> None:
    args = arguments(layer)
    old: Any = args["bias"]
    if old is not None:
        bias = (edit.tensor(old).double() + bias.double()).to(bias.dtype)
    holder = next((n for n in (old, constant) if n is not None and len(n.users) == 1), None)
    if holder is None:
        with edit.graph.inserting_before(layer):
            holder = edit.constant(edit.value(constant if old is None else old), bias)
    else:
        layer.prepend(holder)
        edit.set_constant(holder, bias)
    layer.args, layer.kwargs = tuple((args | {"bias": holder}).values()), {}
