"""One operator for one meaning, with the same bits, so that what follows has to know only one.

relu: `aten.relu.default(x)`, also for clamp(x, 0, ∞). Any other clamp with literal limits (hardtanh, relu6, clip, clamp_min,
clamp_max): `aten.clamp.default(x, lo, hi)`, None for no limit. Padding with a value: `aten.constant_pad_nd.default(x, pad,
value)`; with reflected or repeated edges: `aten.reflection_padNd`, `aten.replication_padNd`. Convolutions:
`aten.convNd.default` and `aten.conv_transposeNd`, with numbers for "same" (uneven: a padding of its own before) and "valid".
"""

from __future__ import annotations

from collections.abc import Callable
from math import copysign
from typing import Any

import torch
from torch import fx

from exactq.graphs.graph import Edit, Graph, arguments, op_name
from exactq.optimization.passes import Found, PassResult

aten = torch.ops.aten

Call = tuple[Any, tuple[Any, ...]]


def canonicalize(graph: Graph) -> PassResult:
    """The graph with one operator for each meaning; names stay, bits stay."""
    edit = Edit(graph)
    found = []
    for node in edit:
        rewrite = _REWRITES.get(node.target)
        with edit.graph.inserting_before(node):
            new = rewrite(edit, node) if rewrite else None
            if new is None or (new[0] is node.target and _same(new[1], node)):
                continue
            whole = edit.call(edit.value(node), new[0], *new[1])
        found.append(Found(edit.value(node), f"{edit.value(node)}: {op_name(node)} is written as {op_name(whole)}"))
        edit.replace(node, whole, keep_name=True)
    return PassResult("canonical", edit.freeze(), tuple(found)) if found else PassResult("canonical", graph)


def _same(args: tuple[Any, ...], node: fx.Node) -> bool:
    return repr(args) == repr(tuple(node.args)) and not node.kwargs


def _clamp(x: fx.Node, lo: float | None, hi: float | None) -> Call:
    if hi is None and lo == 0 and copysign(1, lo) == 1:
        return aten.relu.default, (x,)
    return aten.clamp.default, (x, lo, hi)


def _limits(low: str, high: str) -> Callable[[Edit, fx.Node], Call | None]:
    def rewrite(_: Edit, node: fx.Node) -> Call | None:
        args = arguments(node)
        lo, hi = args.get(low), args.get(high)
        if not all(limit is None or isinstance(limit, int | float) for limit in (lo, hi)):
            return None
        return _clamp(args["self"], lo, hi)

    return rewrite


def _relu6(_: Edit, node: fx.Node) -> Call:
    return _clamp(arguments(node)["self"], 0.0, 6.0)


_PADDINGS = {
    "reflect": {1: aten.reflection_pad1d, 2: aten.reflection_pad2d, 3: aten.reflection_pad3d},
    "replicate": {1: aten.replication_pad1d, 2: aten.replication_pad2d, 3: aten.replication_pad3d},
}


def _pad(_: Edit, node: fx.Node) -> Call | None:
    args = arguments(node)
    pad, mode = list(args["pad"]), args["mode"]
    if mode == "constant":
        return aten.constant_pad_nd.default, (args["self"], pad, 0.0 if args["value"] is None else args["value"])
    packet = _PADDINGS.get(mode, {}).get(len(pad) // 2)
    return (packet.default, (args["self"], pad)) if packet else None


def _padded_convolution(edit: Edit, node: fx.Node) -> Call | None:
    """`padding="same"`: d·(k − 1) zeros a dimension, the odd one behind (ATen's `_convolution_same`)."""
    args = arguments(node)
    x, weight = args["input"], args["weight"]
    plain = {"aten.conv1d": aten.conv1d, "aten.conv2d": aten.conv2d, "aten.conv3d": aten.conv3d}[op_name(node)]
    if weight.op != "get_attr":
        return None
    kernel = edit.tensor(weight).shape[2:]
    dilation = _per_dimension(args["dilation"], len(kernel))
    totals = [d * (k - 1) if args["padding"] == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    if any(total % 2 for total in totals):
        sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
        x = edit.call(f"{edit.value(node)}.pad", aten.constant_pad_nd.default, x, sides, 0.0)
        totals = [0] * len(totals)
    padding = [total // 2 for total in totals]
    stride = _per_dimension(args["stride"], len(kernel))
    return plain.default, (x, weight, args["bias"], stride, padding, dilation, args["groups"])


def _convolution(_: Edit, node: fx.Node) -> Call | None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = arguments(node).values()
    rank = len(stride)
    if transposed:
        packet: Any = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}[rank]
        return packet, (x, weight, bias, stride, padding, output_padding, groups, dilation)
    packet = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}[rank]
    return packet, (x, weight, bias, stride, padding, dilation, groups)


def _per_dimension(value: Any, rank: int) -> list[int]:
    values = list(value)
    return values * rank if len(values) == 1 else values


_REWRITES: dict[Any, Callable[[Edit, fx.Node], Call | None]] = {
    aten.clamp.default: _limits("min", "max"),
    aten.clamp_min.default: _limits("min", ""),
    aten.clamp_max.default: _limits("", "max"),
    aten.clip.default: _limits("min", "max"),
    aten.hardtanh.default: _limits("min_val", "max_val"),
    aten.relu6.default: _relu6,
    aten.pad.default: _pad,
    aten.conv1d.padding: _padded_convolution,
    aten.conv2d.padding: _padded_convolution,
    aten.conv3d.padding: _padded_convolution,
    aten.convolution.default: _convolution,
}
