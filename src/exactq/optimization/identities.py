"""Calls whose result has the bits of what they read: y = x, so readers of y read x.

Dropout outside training, copies and aliases, conversions to the dtype that is there, slices that take everything, views and
expansions to the same shape, permutations that move nothing, padding by nothing, x·1, x/1, x − 0, a 1×1 maximum. "Same" is
judged on dtype, shape and strides at two batch sizes (sizes are linear in the batch, so two points decide), thus a copy that a
later `view` needs for its memory order stays. Not here, because −0 would not come back: x + 0, and 1×1 average pooling,
which adds its one value to +0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from exactq.graphs.graph import Edit, Graph, arguments, op_name
from exactq.graphs.programs import fake_values
from exactq.optimization.passes import Found, PassResult

_BATCHES = (2, 3)


def remove_identities(graph: Graph) -> PassResult:
    """The graph without calls that give back the bits they read; their readers read their input, their names are gone."""
    edit = Edit(graph)
    candidates = [node for node in edit if node.op == "call_function" and _may_be_identity(node)]
    if not candidates:
        return PassResult("identities", graph)
    walks = [fake_values(graph, batch) for batch in _BATCHES]
    found: list[Found] = []
    renames: dict[str, str] = {}
    for node in candidates:
        source = _source(node)
        assert source is not None
        name, read = edit.value(node), edit.value(source)
        if any(_layout(walk.get(name)) != _layout(walk.get(read)) for walk in walks):
            continue
        found.append(Found(name, f"{name} ({op_name(node)}) gives back the bits of {read}: removed"))
        renames[name] = read
        edit.replace(node, source)
    return PassResult("identities", edit.freeze(), tuple(found), renames) if found else PassResult("identities", graph)


def _source(node: fx.Node) -> fx.Node | None:
    """What the call reads first; of a list, its first."""
    source: Any = node.args[0] if node.args else None
    if isinstance(source, list | tuple):
        source = source[0] if source else None
    return source if isinstance(source, fx.Node) else None


def _layout(value: Tensor | None) -> Any:
    """What has to agree: dtype, shape and the strides that matter."""
    if value is None:
        return object()
    strides = tuple(stride for stride, size in zip(value.stride(), value.shape, strict=True) if size != 1)
    return value.dtype, tuple(value.shape), strides


def _may_be_identity(node: fx.Node) -> bool:
    test = _IDENTITIES.get(op_name(node).removeprefix("aten."))
    if test is None or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return _source(node) is not None and test(arguments(node))


def _always(_: dict[str, Any]) -> bool:
    return True


def _scalar(value: float) -> Callable[[dict[str, Any]], bool]:
    def test(args: dict[str, Any]) -> bool:
        other = args["other"]
        plain = args.get("alpha", 1) == 1 and "rounding_mode" not in args
        # str tells −0 from 0: (−0) − (−0) is +0.
        return plain and isinstance(other, int | float) and str(float(other)) == str(value)

    return test


def _one_element_window(args: dict[str, Any]) -> bool:
    sizes = (*args["kernel_size"], *(args["stride"] or args["kernel_size"]))
    return set(sizes) == {1} and not any(args["padding"])


_IDENTITIES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "alias": _always,
    "clone": _always,
    "contiguous": _always,
    "detach": _always,
    "lift_fresh_copy": _always,
    "expand": _always,
    "flatten": _always,
    "repeat": _always,
    "reshape": _always,
    "slice": _always,
    "squeeze": _always,
    "type_as": _always,
    "to": _always,
    "_to_copy": _always,
    "view": _always,
    "_unsafe_view": _always,
    "alpha_dropout": lambda args: not args["train"],
    "cat": lambda args: len(args["tensors"]) == 1,
    "constant_pad_nd": lambda args: not any(args["pad"]),
    "div": _scalar(1.0),
    "dropout": lambda args: not args["train"],
    "feature_dropout": lambda args: not args["train"],
    "max_pool1d": _one_element_window,
    "max_pool2d": _one_element_window,
    "max_pool3d": _one_element_window,
    "mul": _scalar(1.0),
    "permute": lambda args: all(d % len(args["dims"]) == n for n, d in enumerate(args["dims"])),
    "sub": _scalar(0.0),
    "transpose": lambda args: args["dim0"] == args["dim1"],
}
"""Operator -> whether its arguments make it an identity, provided that dtype, shape and strides stay."""
