"""Matrix products with a constant matrix are linear layers: x·W = linear(x, Wᵀ), b + x·W = linear(x, Wᵀ, b).

`addmm` (the `Conv1D` of GPT-2), `mm` and `matmul`. The products are the same; a library may add them up in another order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from exactq.graphs.graph import Edit, Graph, arguments, op_name
from exactq.optimization.passes import Found, PassResult

aten = torch.ops.aten


def use_linear(graph: Graph) -> PassResult:
    """The graph with `aten.linear` for each product with a constant matrix; the constant keeps its name, transposed."""
    edit = Edit(graph)
    found = []
    for node in edit:
        product = _product(edit, node)
        if product is None:
            continue
        name, weight = edit.value(node), product.weight
        transposed = edit.tensor(weight).t().contiguous()
        with edit.graph.inserting_before(node):
            if len(weight.users) == 1:
                edit.set_constant(weight, transposed)
            else:
                weight = edit.constant(edit.value(weight), transposed)
            bias = (product.bias,) if product.bias is not None else ()
            whole = edit.call(name, aten.linear.default, product.x, weight, *bias)
        found.append(Found(name, f"{name} ({op_name(node)}) multiplies by the constant {edit.value(weight)}: a linear layer"))
        edit.replace(node, whole, keep_name=True)
    return PassResult("linear", edit.freeze(), tuple(found)) if found else PassResult("linear", graph)


@dataclass(frozen=True)
class _Product:
    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None


def _product(edit: Edit, node: fx.Node) -> _Product | None:
    if node.target is aten.addmm.default:
        args = arguments(node)
        bias, x, weight = args["self"], args["mat1"], args["mat2"]
        if args["alpha"] != 1 or args["beta"] != 1 or bias.op != "get_attr":
            return None
    elif node.target in (aten.mm.default, aten.matmul.default):
        bias, (x, weight) = None, node.args
    else:
        return None
    if weight.op != "get_attr" or edit.tensor(weight).ndim != 2:
        return None
    if bias is not None and edit.tensor(bias).shape != edit.tensor(weight).shape[1:]:
        return None
    return _Product(x, weight, bias)
