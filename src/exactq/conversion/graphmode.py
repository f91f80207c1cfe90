"""FX graphs of others with their quantized calls made into float calls and marks, in place, on a copy.

Names: a module's value has the module's path, a function's the word of its operator, numbered in the order of the graph: `add`,
`add_1`. Both are the same before and after `convert_fx`, whose own node names are not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from exactq.conversion.markers import DECODED, NAMED, ON_GRID
from exactq.conversion.standins import Apply, Place, place
from exactq.errors import ModelError
from exactq.graphs.graph import unique

_ops: Any = torch.ops.quantized


def _added(x: Tensor, y: Tensor) -> Tensor:
    return F.relu(torch.add(x, y))


def _multiplied(x: Tensor, y: Tensor) -> Tensor:
    return F.relu(torch.mul(x, y))


BINARY: dict[Any, Callable[..., Tensor]] = {
    _ops.add: torch.add,
    _ops.add_relu: _added,
    _ops.mul: torch.mul,
    _ops.mul_relu: _multiplied,
    _ops.matmul: torch.matmul,
}
UNARY: dict[Any, Callable[..., Tensor]] = {
    _ops.hardswish: F.hardswish,
    _ops.leaky_relu: F.leaky_relu,
    _ops.elu: F.elu,
    _ops.sigmoid: torch.sigmoid,
}
"""`quantized::` operator whose last arguments are the scale and zero of its output -> the same on reals."""

_WORDS: dict[Any, str] = {
    operator.add: "add",
    operator.iadd: "add",
    operator.mul: "mul",
    operator.imul: "mul",
    _ops.add_relu: "add",
    _ops.mul_relu: "mul",
}


_TENSORS = frozenset(
    "cat flatten reshape view relu relu6 sigmoid tanh hardtanh leaky_relu mean permute transpose squeeze unsqueeze max_pool1d "
    "max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d".split()
)
"""Functions and methods that make one tensor, of codes where they read codes: results are shown under these names."""


def rewrite(module: fx.GraphModule, prefix: str, places: Mapping[str, Place]) -> dict[str, str]:
    """Rewrite a graph in place; back comes node name -> value name, for each value that is encoded.

    `places` has the grid of each fake quantization and observer among the graph's modules, by its name there. Raises
    `ModelError` for calls that are not read, by their names.
    """
    names = value_names(module, prefix)
    spots: dict[str, str] = {}
    for node in list(module.graph.nodes):
        made = _rewritten(module, node, names, places, prefix)
        if made is None:
            continue
        target, args, name = made
        with module.graph.inserting_after(node):
            if isinstance(target, nn.Module):
                new = module.graph.call_module(_held(module, target, str(name)), args)
            else:
                new = module.graph.call_function(target, args)
        if name is not None:
            spots[node.name] = name
        node.replace_all_uses_with(new)
        if target is NAMED:
            new.args = args
        else:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return spots


def _held(module: fx.GraphModule, made: nn.Module, name: str) -> str:
    """Where the graph now has a new module: under the value's name, or a free one like it."""
    path = unique(name.rpartition(".")[2], dir(module))
    module.add_module(path, made)
    return path


Made = tuple[Any, tuple[Any, ...], str | None]


def _rewritten(
    module: fx.GraphModule, node: fx.Node, names: Mapping[fx.Node, str], places: Mapping[str, Place], prefix: str
) -> Made | None:
    """What a node becomes, and the name of what it encodes; None where it stays."""
    if node.op == "call_module":
        if str(node.target) not in places:
            return None
        (source,) = node.args
        name = _producer(module, source, names)  # type: ignore[arg-type]
        return _mark(source, replace(places[str(node.target)], name=name))
    if node.op == "call_method" and node.target == "dequantize" or node.target is torch.dequantize:
        return DECODED, (node.args[0],), None
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target is torch.quantize_per_tensor:
        given: list[Any] = [_value(module, a) if n else a for n, a in enumerate(node.args)]
        x, scale, zero, dtype = given
        return _mark(x, place(scale, zero, dtype, names[x]))
    if node.target in BINARY or node.target in UNARY:
        return _operator(module, node, names[node])
    if node.target is _ops.cat:
        given = [_value(module, a) if n else a for n, a in enumerate(node.args)]
        xs, dim, scale, zero = given
        at = place(scale, zero, torch.quint8, names[node])
        return Apply(lambda *parts: torch.cat(parts, dim), at), tuple(xs), at.name
    if str(getattr(node.target, "__module__", "")).startswith("torch._ops.quantized") or "quantized." in str(node.target):
        raise ModelError(
            f"`{names[node]}` calls {node.target} ({prefix or 'the graph'}), which is not read: use the module form"
        )
    # Where observers tell every value, they name it too.
    if not places and _word(node.target) in _TENSORS:
        return NAMED, (node, names[node]), names[node]
    return None


def _mark(x: Any, at: Place) -> Made:
    return ON_GRID, (x, at.scale, at.zero, at.lo, at.hi, at.name), at.name


def _operator(module: fx.GraphModule, node: fx.Node, name: str) -> Made:
    args = [*node.args, *(node.kwargs[k] for k in ("scale", "zero_point") if k in node.kwargs)]
    run = BINARY.get(node.target) or UNARY[node.target]
    if node.target in BINARY:
        if len(args) != 4:
            raise ModelError(
                f"`{name}` calls {node.target} with a number: it moves the grid of codes, which no target here does"
            )
        operands, (scale, zero) = args[:2], args[2:]
    elif node.target in (_ops.leaky_relu, _ops.elu):
        x, alpha, *rest = args
        operands, (scale, zero) = [x, alpha], rest[-2:]
    else:
        operands, (scale, zero) = args[:1], args[1:]
    at = place(_value(module, scale), _value(module, zero), torch.quint8, name)
    return Apply(run, at), tuple(operands), name


def _value(module: fx.GraphModule, argument: Any) -> Any:
    """A literal argument, or the value of the buffer that is read for it."""
    if not isinstance(argument, fx.Node):
        return argument
    if argument.op != "get_attr":
        raise ModelError(f"`{argument.name}` is a scale or zero that the graph computes: dynamic quantization is not read")
    owner: Any = module
    for part in str(argument.target).split("."):
        owner = getattr(owner, part)
    return owner


def value_names(module: fx.GraphModule, prefix: str) -> dict[fx.Node, str]:
    """The name of each node's value."""
    names: dict[fx.Node, str] = {}
    taken: set[str] = set()
    for node in module.graph.nodes:
        if (before := _fused(module, node)) is not None:  # `convert_fx` leaves no node of it that could be counted
            word = f"{names[before]}.relu"
        elif node.op == "placeholder":
            word = str(node.target)
        elif node.op == "call_module":
            word = f"{prefix}{node.target}"
        elif node.op in ("call_function", "call_method"):
            word = prefix + _word(node.target)
        else:
            continue
        names[node] = unique(word, taken)
        taken.add(names[node])
    return names


def _word(target: Any) -> str:
    if target in _WORDS:
        return _WORDS[target]
    return str(target if isinstance(target, str) else getattr(target, "__name__", target)).strip("_")


def _producer(module: fx.GraphModule, source: fx.Node, names: Mapping[fx.Node, str]) -> str:
    """The name of an observed value: behind an addition or product and its relu that of the former."""
    before = _fused(module, source)
    return names[source if before is None else before]


def _fused(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The addition or product that `convert_fx` fuses with this relu behind it, or None."""
    read = node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None
    if read is None or read.op != "call_function" or _word(read.target) not in ("add", "mul"):
        return None
    return read if _is_relu(module, node) else None


def _is_relu(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), nn.ReLU)
    return node.target in (F.relu, torch.relu, torch.relu_, "relu", "relu_")
