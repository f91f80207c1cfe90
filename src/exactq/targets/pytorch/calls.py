"""A Q/DQ graph as the calls that an engine is asked for, one a value: the loader makes them, the emulator predicts them.

An operator between dequantize and quantize nodes is one call on codes, with an activation behind it where the output grid ends
at its bounds. Everything else is a float operator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from exactq.graphs.graph import Graph, arguments, constant, feeds, op_name
from exactq.graphs.programs import bind, shapes
from exactq.graphs.qdq import QuantizeNode, read_dequantize, read_dynamic, read_quantize
from exactq.kernels import qnnpack
from exactq.numerics.formats import Grid
from exactq.plans.rules import Makes, Rule
from exactq.targets.lowering import folded, operand, rounds_once


@dataclass(frozen=True, eq=False)
class Quantize:
    """Reals to codes of `y`."""

    y: Grid


@dataclass(frozen=True, eq=False)
class Dequantize:
    """Codes of `x` to reals."""

    x: Grid


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution of `rank` axes, or a linear layer of none; `places` are the stride, padding, dilation and groups.

    With `added` codes of that grid, of the result's shape, are added to the accumulator; the call reads them second.
    """

    rank: int
    weight: Tensor
    bias: Tensor | None
    x: Grid
    w: Grid
    y: Grid
    relu: bool
    places: dict[str, Any]
    added: Grid | None = None


@dataclass(frozen=True, eq=False)
class DynamicLayer:
    """A linear layer of reals, which it encodes on a grid that it makes for them; it gives reals."""

    weight: Tensor
    bias: Tensor | None
    w: Grid
    relu: bool
    reduce_range: bool


@dataclass(frozen=True, eq=False)
class Pair:
    """`add` or `mul` of two operands that broadcast."""

    op: str
    a: Grid
    b: Grid
    y: Grid
    relu: bool


@dataclass(frozen=True, eq=False)
class Concat:
    """Several operands, one after the other along `axis`."""

    xs: tuple[Grid, ...]
    y: Grid
    axis: int


@dataclass(frozen=True, eq=False)
class Function:
    """`sigmoid`, `hardswish` or `leaky_relu` with its slope."""

    op: str
    x: Grid
    y: Grid
    slope: float | None


@dataclass(frozen=True, eq=False)
class Average:
    """The average pool over `rank` axes."""

    rank: int
    x: Grid
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    count_include_pad: bool


@dataclass(frozen=True, eq=False)
class Adaptive:
    """The average pool to `output` pixels."""

    x: Grid
    output: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Largest:
    """A max pool of codes: `places` are its kernel, stride, padding and dilation, one number an axis."""

    op: str
    run: Callable[..., Any]
    places: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Mean:
    """The mean over the last axes, `dims` of them in negative numbers."""

    x: Grid
    dims: tuple[int, ...]
    keep: bool


@dataclass(frozen=True, eq=False)
class Moved:
    """Codes that `run` moves or selects; padding is with the code of `fill`."""

    op: str
    run: Callable[..., Any]
    grid: Grid
    pad: tuple[int, ...] | None = None
    fill: float = 0.0


@dataclass(frozen=True, eq=False)
class Real:
    """A float operator, or a constant."""

    op: str
    run: Callable[..., Any]


What = (
    Quantize | Dequantize | Layer | DynamicLayer | Pair | Concat | Function | Average | Adaptive | Largest | Mean | Moved | Real
)


@dataclass(frozen=True, eq=False)
class Call:
    """One value: what makes it, of which, and on which grid its codes lie; `covers` are the graph's operators that it does.

    `shown`: reals that a trace has, in front of a dynamic layer or behind it.
    """

    name: str
    what: What
    inputs: tuple[str, ...]
    grid: Grid | None = None
    covers: tuple[str, ...] = ()
    inexact: str | None = None
    shown: bool = False


def calls(graph: Graph, engine: str, operators: Mapping[str, Rule], dynamic: Collection[str] = ()) -> Iterator[Call]:
    """The calls of a Q/DQ graph or a float graph on an engine that has these operators, in order; some nobody needs.

    `dynamic` are the operators that the engine has for reals, too.
    """
    made = list(_calls(graph, engine, operators, dynamic))
    layers = [call for call in made if isinstance(call.what, DynamicLayer)]
    shown = {name for call in layers for name in (call.name, *call.inputs)}
    for call in made:
        yield replace(call, shown=True) if call.name in shown and isinstance(call.what, DynamicLayer | Real) else call


def _calls(graph: Graph, engine: str, operators: Mapping[str, Rule], dynamic: Collection[str]) -> Iterator[Call]:
    for node in graph.calls:
        name = graph.name(node)
        if (q := read_quantize(graph, node)) is not None:
            if q.source.op == "get_attr":  # read in float only: layers take the folded codes
                codes = partial(q.grid.encode, constant(graph.module, q.source))
                yield Call(name, Real("constant", codes), (), q.grid)
            else:
                yield _codes(graph, node, q, engine, operators)
        elif (dq := read_dequantize(graph, node)) is not None and dq.axis is None and dq.source.op != "get_attr":
            if (q := read_quantize(graph, dq.source)) is not None and q.source.op == "get_attr":
                yield _real(graph, node, "constant")
            else:
                yield Call(name, Dequantize(dq.grid), (graph.name(dq.source),))
        elif (layer := _dynamic(graph, node, engine, dynamic)) is not None:
            yield layer
        else:
            yield _real(graph, node, "constant" if dq is not None else op_name(node))


def _dynamic(graph: Graph, node: fx.Node, engine: str, dynamic: Collection[str]) -> Call | None:
    """The call of a layer that makes the grid of its input, or of the relu that alone reads such a layer."""
    layer = node.all_input_nodes[0] if op_name(node) == "aten.relu" else node
    if op_name(layer) not in dynamic or layer is not node and len(layer.users) != 1:
        return None
    x, weight, bias = read_dynamic(layer.all_input_nodes[0]), folded(graph, layer.args[1]), arguments(layer).get("bias")
    if x is None or weight is None or bias is not None and bias.op != "get_attr":
        return None
    covers = tuple(graph.name(n) for n in dict.fromkeys((layer, node)))
    value = None if bias is None else constant(graph.module, bias)
    # QNNPACK takes all codes whatever it is told, and warns (qlinear_dynamic.cpp).
    what = DynamicLayer(weight[0], value, weight[1], layer is not node, x.reduce_range and engine != "qnnpack")
    return Call(graph.name(node), what, (graph.name(x.source),), covers=covers)


def _real(graph: Graph, node: fx.Node, op: str) -> Call:
    run, reads = bind(graph, node)
    known = op == "constant" or rounds_once(node)
    inexact = (
        None if known else f"`{op.removeprefix('aten.')}` runs in PyTorch's float kernels, whose last bits are not predicted"
    )
    return Call(graph.name(node), Real(op, run), reads, inexact=inexact)


def _codes(graph: Graph, node: fx.Node, q: QuantizeNode, engine: str, operators: Mapping[str, Rule]) -> Call:
    """The call that makes these codes: the engine's operator where it has one, quantize_per_tensor of the real otherwise."""
    name, source = graph.name(node), q.source
    root = source
    if op_name(source) in ("aten.relu", "aten.clamp") and len(source.users) == 1 and implied(source, q.grid):
        behind = source.all_input_nodes[0]
        if behind.op == "call_function" and len(behind.users) == 1 and read_dequantize(graph, behind) is None:
            root = behind
    rule = operators.get(op_name(root)) if root.op == "call_function" and len(root.users) == 1 else None
    asker = _ASKERS.get(op_name(root)) if rule is not None and rule.declines(root) is None else None
    at = _Root(graph, root, q.grid, engine, root is not source)
    joined = _joined(at, rule) if isinstance(rule, Makes) and asker is not None else None
    made = joined or (asker(at) if asker is not None else None)
    if made is None:
        return Call(name, Quantize(q.grid), (graph.name(source),), q.grid)
    what, reads = made
    covers = (graph.name(root),) if root is source else (graph.name(root), graph.name(source))
    if isinstance(what, Layer) and what.added is not None:
        covers = (next(graph.name(n) for n in root.all_input_nodes if read_dequantize(graph, n) is None), *covers)
    return Call(name, what, reads, q.grid, covers)


def implied(activation: fx.Node, grid: Grid) -> bool:
    """Whether codes that end where the grid ends are bounded as a relu or clamp in front of it bounds them."""
    given = arguments(activation)
    lo, hi = (0.0, None) if op_name(activation) == "aten.relu" else (given.get("min"), given.get("max"))
    if any(isinstance(bound, fx.Node) for bound in (lo, hi)):
        return False
    ends = ((lo, grid.format.lo), (hi, grid.format.hi))
    return all(bound is None or int(grid.encode(torch.tensor(float(bound)))) == end for bound, end in ends)


def needed(made: Iterator[Call], outputs: Sequence[str]) -> list[Call]:
    """Those of the calls that the outputs need, in order."""
    wanted, kept = set(outputs), []
    for call in reversed(list(made)):
        if call.name in wanted:
            wanted.update(call.inputs)
            kept.append(call)
    return kept[::-1]


Asked = tuple[What, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class _Root:
    """An operator whose result, behind an activation or not, is encoded on `y`."""

    graph: Graph
    node: fx.Node
    y: Grid
    engine: str
    activated: bool


Asker = Callable[[_Root], Asked | None]
"""The call and the codes it reads; None where the operator runs in float."""


def _layer(at: _Root) -> Asked | None:
    x, weight, given = operand(at.graph, at.node.args[0]), folded(at.graph, at.node.args[1]), arguments(at.node)
    if x is None or weight is None:
        return None
    rank = weight[0].ndim - 2
    places: dict[str, Any] = {}
    if rank:
        places = {n: _each(given[n], rank) for n in ("stride", "padding", "dilation")} | {"groups": int(given["groups"])}
    bias = given.get("bias")
    value = None
    if bias is not None:
        coded = folded(at.graph, bias)
        if coded is not None:
            value = coded[1].decode(coded[0])
        elif bias.op == "get_attr":
            value = constant(at.graph.module, bias)
        else:
            return None
    relu = at.activated and _zero_is_lowest(at.y)
    return Layer(rank, weight[0], value, x.grid, weight[1], at.y, relu, places), (x.name,)


def _joined(at: _Root, rule: Makes) -> Asked | None:
    """The layer that adds decoded codes to its accumulator, on the conditions of `plans.build.joined`."""
    reads = at.node.all_input_nodes
    for layer in (n for n in reads if len(reads) == 2 and op_name(n) in rule.joins and [*n.users] == [at.node]):
        (decoded,) = (n for n in reads if n is not layer)
        other, made = operand(at.graph, decoded), _layer(replace(at, node=layer))
        if other is None or made is None or made[1] == (other.name,):
            continue
        readers = {r for dq in at.graph.node(other.name).users for r in (dq.users if dq.op == "call_function" else (dq,))}
        if not all(feeds(r, layer) for r in readers if r is not at.node):
            continue
        shape_of = shapes(at.graph, batch=2)
        if shape_of[at.graph.name(layer)] == shape_of[at.graph.name(decoded)]:
            what, codes = made
            assert isinstance(what, Layer)
            return replace(what, added=other.grid), (*codes, other.name)
    return None


def _zero_is_lowest(y: Grid) -> bool:
    return int(y.zero) == y.format.lo


def _each(value: Any, rank: int) -> tuple[int, ...]:
    several = tuple(int(n) for n in value) if isinstance(value, list | tuple) else (int(value),)
    return several * rank if len(several) == 1 else several


def _pair(at: _Root) -> Asked | None:
    a, b = operand(at.graph, at.node.args[0]), operand(at.graph, at.node.args[1])
    op = op_name(at.node).removeprefix("aten.")
    if a is None or b is None:
        return None
    if at.engine == "qnnpack" and op == "add" and not qnnpack.adds(a.grid, b.grid, at.y):
        return None  # PyTorch would raise
    return Pair(op, a.grid, b.grid, at.y, at.activated and _zero_is_lowest(at.y)), (a.name, b.name)


def _concat(at: _Root) -> Asked | None:
    operands = [operand(at.graph, n) for n in at.node.args[0]]  # type: ignore[union-attr]
    known = [o for o in operands if o is not None]
    if at.activated or len(known) != len(operands):
        return None
    return Concat(tuple(o.grid for o in known), at.y, int(arguments(at.node)["dim"])), tuple(o.name for o in known)


def _function(at: _Root) -> Asked | None:
    x, slope = operand(at.graph, at.node.args[0]), arguments(at.node).get("negative_slope")
    if at.activated or x is None:
        return None
    return Function(op_name(at.node).removeprefix("aten."), x.grid, at.y, None if slope is None else float(slope)), (x.name,)


def _average(at: _Root) -> Asked | None:
    x, rank, given = operand(at.graph, at.node.args[0]), int(op_name(at.node)[-2]), arguments(at.node)
    if at.activated or x is None or not x.grid.same_as(at.y):
        return None
    kernel = _each(given["kernel_size"], rank)
    stride, padding = _each(given["stride"] or kernel, rank), _each(given["padding"], rank)
    return Average(rank, x.grid, kernel, stride, padding, bool(given["count_include_pad"])), (x.name,)


def _adaptive(at: _Root) -> Asked | None:
    x, rank = operand(at.graph, at.node.args[0]), int(op_name(at.node)[-2])
    if at.activated or x is None or not x.grid.same_as(at.y):
        return None
    return Adaptive(x.grid, _each(arguments(at.node)["output_size"], rank)), (x.name,)


def _largest(at: _Root) -> Asked | None:
    x, (run, _), given = operand(at.graph, at.node.all_input_nodes[0]), bind(at.graph, at.node), arguments(at.node)
    if at.activated or x is None or not x.grid.same_as(at.y):
        return None
    rank = int(op_name(at.node)[-2])
    kernel = _each(given["kernel_size"], rank)
    places: dict[str, Any] = {"kernel": kernel, "stride": _each(given["stride"] or kernel, rank)}
    places |= {name: _each(given[name], rank) for name in ("padding", "dilation")}
    return Largest(op_name(at.node), run, places), (x.name,)


def _mean(at: _Root) -> Asked | None:
    x, given = operand(at.graph, at.node.args[0]), arguments(at.node)
    if at.activated or x is None or not x.grid.same_as(at.y):
        return None
    rank = len(shapes(at.graph)[x.name])
    dims = tuple(sorted(int(n) % rank - rank for n in given["dim"]))
    return (Mean(x.grid, dims, bool(given["keepdim"])), (x.name,)) if dims == tuple(range(-len(dims), 0)) else None


def _moved(at: _Root) -> Asked | None:
    x, (run, _) = operand(at.graph, at.node.all_input_nodes[0]), bind(at.graph, at.node)
    if at.activated or x is None or not x.grid.same_as(at.y):
        return None
    if op_name(at.node) == "aten.constant_pad_nd":
        given = arguments(at.node)
        return Moved(op_name(at.node), run, at.y, tuple(int(n) for n in given["pad"]), float(given["value"])), (x.name,)
    return Moved(op_name(at.node), run, at.y), (x.name,)


_ASKERS: dict[str, Asker] = {
    **dict.fromkeys(("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.linear"), _layer),
    **dict.fromkeys(("aten.add", "aten.mul"), _pair),
    **dict.fromkeys(("aten.sigmoid", "aten.hardswish", "aten.leaky_relu"), _function),
    "aten.cat": _concat,
    **{f"aten.avg_pool{n}d": _average for n in (1, 2, 3)},
    **{f"aten.adaptive_avg_pool{n}d": _adaptive for n in (1, 2, 3)},
    "aten.mean": _mean,
    **{f"aten.max_pool{n}d": _largest for n in (1, 2, 3)},
    **{f"aten.{op}": _moved for op in "view flatten unsqueeze squeeze permute transpose slice constant_pad_nd".split()},
}
