"""Calls that read nothing but constants: y = f(c), computed once, here.

Weight normalisation, a scaled weight, a reshaped literal, a ready-made table of positions. What draws random numbers stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from exactq.errors import ModelError
from exactq.graphs.graph import Edit, Graph, op_name
from exactq.optimization.passes import Found, PassResult


def fold_constants(graph: Graph) -> PassResult:
    """The graph with constants where calls of constants were, under the calls' own names; bit for bit what they gave."""
    edit = Edit(graph)
    found = []
    for node in edit:
        if not _is_foldable(node):
            continue
        name, target = edit.value(node), node.target
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), edit.tensor)
        assert isinstance(target, torch._ops.OpOverload)
        with torch.no_grad():
            value: Any = target(*args, **kwargs)
        if not isinstance(value, Tensor):
            continue
        if bool(torch.isnan(value).any()):
            raise ModelError(f"`{name}` ({op_name(node)}) makes a NaN of the model's own constants: a grid needs finite values")
        found.append(Found(name, f"{name} ({op_name(node)}) reads constants only: computed once"))
        with edit.graph.inserting_before(node):
            whole = edit.constant(name, value.clone(memory_format=torch.contiguous_format))
        edit.replace(node, whole, keep_name=True)
    return PassResult("folding", edit.freeze(), tuple(found)) if found else PassResult("folding", graph)


def _is_foldable(node: fx.Node) -> bool:
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return False
    random = torch.Tag.nondeterministic_seeded in target.tags or op_name(node).startswith("aten.empty")
    return not random and not target._schema.is_mutable and all(n.op == "get_attr" for n in node.all_input_nodes)
