"""A graph of a fixed batch -> the same graph for any, where that is proven; otherwise the reason.

A file is often written for one sample. It says the same for each of many if no operator mixes samples. So each value has
its spread: along which dimension the samples lie, and how many rows of it each one has. An operator either keeps the samples
apart, or there is no proof. Sizes are literals in views and expansions alone: there the samples' dimension becomes −1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import fx

from exactq.errors import ModelError
from exactq.graphs.graph import Edit, Graph, arguments, op_name
from exactq.graphs.programs import shapes

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Spread:
    """The samples lie along dimension `axis`, each with `rows` of its indices, one sample after the other."""

    axis: int
    rows: int = 1


class Mixed(Exception):
    """There is no proof that samples stay apart, for the reason given."""


def free_batch(graph: Graph) -> Graph | str:
    """`graph` with a free batch, or why it stays as it is."""
    sizes = {i.shape[:1] for i in graph.inputs}
    if len(sizes) != 1 or sizes == {()}:
        return "its inputs have not the same first dimension"
    ((batch,),) = sizes
    edit = Edit(graph)
    shape_of = shapes(graph)
    look = _Look({node: shape_of[graph.name(node)] for node in graph}, batch, {})
    twins = dict(zip(edit, graph, strict=True))
    for node, original in twins.items():
        if node.op == "placeholder":
            look.spreads[original] = Spread(0)
        elif node.op == "call_function":
            try:
                spread, args = _through(original, look)
            except Mixed as reason:
                return f"`{graph.name(original)}` ({op_name(original)}) {reason}"
            if spread is not None:
                look.spreads[original] = spread
            if args is not None:
                node.args = (node.args[0], args)
    (out,) = (n for n in graph.module.graph.nodes if n.op == "output")
    for node in out.args[0]:
        if look.spreads.get(node) != Spread(0):
            return f"the output `{graph.name(node)}` has not one row a sample"
    freed = replace(edit.freeze(), inputs=tuple(replace(i, batch=True) for i in graph.inputs))
    try:
        other = shapes(freed, batch + 1)
    except ModelError as error:
        return str(error)
    if any(other[name][:1] != (batch + 1,) for name in graph.outputs):
        return "its outputs do not grow with the batch"
    return freed


@dataclass(frozen=True)
class _Look:
    """What is known while walking: each value's sizes at the file's batch, and the spreads found so far."""

    sizes: dict[fx.Node, Shape]
    batch: int
    spreads: dict[fx.Node, Spread]

    def only_first(self, node: fx.Node) -> Spread:
        """The spread of the first operand, if no other one has samples."""
        first, *others = node.all_input_nodes
        if any(n in self.spreads for n in others) or first not in self.spreads:
            raise Mixed("reads samples where a constant is expected")
        return self.spreads[first]


Result = tuple[Spread | None, list[int] | None]
"""The spread of a call's result, and the sizes it has to be called with instead, if any."""


def _through(node: fx.Node, look: _Look) -> Result:
    if not any(n in look.spreads for n in node.all_input_nodes):
        return None, None
    rule = _RULES.get(op_name(node).removeprefix("aten."))
    if rule is None:
        raise Mixed("is not known to keep samples apart")
    found = rule(node, look)
    return found if isinstance(found, tuple) else (found, None)


def _elementwise(node: fx.Node, look: _Look) -> Spread:
    """Broadcasting aligns dimensions from behind: the samples have to lie alike, and constants must not have that dimension."""
    rank = len(look.sizes[node])
    found = {
        Spread(look.spreads[n].axis + rank - len(look.sizes[n]), look.spreads[n].rows)
        for n in node.all_input_nodes
        if n in look.spreads
    }
    if len(found) != 1:
        raise Mixed("reads values whose samples lie in different ways")
    (spread,) = found
    for n in node.all_input_nodes:
        place = spread.axis - rank + len(look.sizes[n])
        if n not in look.spreads and place >= 0 and look.sizes[n][place] != 1:
            raise Mixed("reads a constant with a value for each sample")
    return spread


def _by_sample(node: fx.Node, look: _Look) -> Spread:
    """Operators whose first dimension is the batch by definition."""
    spread = look.only_first(node)
    if spread.axis != 0:
        raise Mixed("has the samples in another dimension than the first")
    if arguments(node).get("training", False):
        raise Mixed("normalises by the statistics of each batch")
    return spread


def _linear(node: fx.Node, look: _Look) -> Spread:
    spread = look.only_first(node)
    if spread.axis == len(look.sizes[node.all_input_nodes[0]]) - 1:
        raise Mixed("adds up over the samples")
    return spread


def _matmul(node: fx.Node, look: _Look) -> Spread:
    a, b = node.args
    rank_a, rank_b = len(look.sizes[a]), len(look.sizes[b])  # type: ignore[index]
    in_a, in_b = look.spreads.get(a), look.spreads.get(b)  # type: ignore[arg-type]
    if in_a is not None and in_b is None and rank_b == 2 and in_a.axis < rank_a - 1:
        return in_a
    if in_b is not None and in_a is None and rank_a == 2 and in_b.axis < rank_b - 2:
        return in_b
    if in_a is not None and in_a == in_b and rank_a == rank_b and in_a.axis < rank_a - 2:
        return in_a
    raise Mixed("multiplies in a way that may add up over the samples")


def _along(*names: str) -> Callable[[fx.Node, _Look], Spread]:
    """Operators that work along the dimensions in these arguments, and leave the others where they are."""

    def rule(node: fx.Node, look: _Look) -> Spread:
        spread, rank = look.only_first(node), len(look.sizes[node.all_input_nodes[0]])
        values = arguments(node)
        given = next(values[name] for name in names if name in values)
        if spread.axis in {d % rank for d in (given if isinstance(given, list | tuple) else [given])}:
            raise Mixed("works across the samples")
        return spread

    return rule


def _dropping(*names: str) -> Callable[[fx.Node, _Look], Spread]:
    """As `_along`, where these dimensions are gone afterwards unless `keepdim` says otherwise."""
    keeps = _along(*names)

    def rule(node: fx.Node, look: _Look) -> Spread:
        spread, rank = keeps(node, look), len(look.sizes[node.all_input_nodes[0]])
        values = arguments(node)
        if values.get("keepdim", False):
            return spread
        given = next(values[name] for name in names if name in values)
        gone = [d % rank for d in (given if isinstance(given, list | tuple) else [given])]
        return replace(spread, axis=spread.axis - sum(d < spread.axis for d in gone))

    return rule


def _layer_norm(node: fx.Node, look: _Look) -> Spread:
    spread, rank = look.only_first(node), len(look.sizes[node])
    if spread.axis >= rank - len(arguments(node)["normalized_shape"]):
        raise Mixed("normalises across the samples")
    return spread


def _cat(node: fx.Node, look: _Look) -> Spread:
    parts, dim = node.args[0], int(arguments(node)["dim"]) % len(look.sizes[node])
    found = {look.spreads.get(n) for n in parts}  # type: ignore[union-attr,arg-type]
    spread = found.pop()
    if found or spread is None:
        raise Mixed("joins values whose samples lie in different ways, or constants")
    if spread.axis == dim:
        raise Mixed("works across the samples")
    return spread


def _pad(node: fx.Node, look: _Look) -> Spread:
    spread, pairs = look.only_first(node), arguments(node)["pad"]
    place = 2 * (len(look.sizes[node]) - 1 - spread.axis)
    if any(pairs[place : place + 2]):
        raise Mixed("adds samples")
    return spread


def _permute(node: fx.Node, look: _Look) -> Spread:
    spread, dims = look.only_first(node), list(arguments(node)["dims"])
    return replace(spread, axis=dims.index(spread.axis))


def _view(node: fx.Node, look: _Look) -> Result:
    """Row-major order: what lies before the samples has to stay before them; each sample's elements stay together."""
    spread, old, new = look.only_first(node), look.sizes[node.all_input_nodes[0]], look.sizes[node]
    before = prod(old[: spread.axis])
    fits = [n for n, size in enumerate(new) if prod(new[:n]) == before and size % look.batch == 0]
    if not fits:
        raise Mixed(f"makes {list(new)} of {list(old)}, which takes the samples apart")
    axis = spread.axis if spread.axis in fits else fits[0]
    return Spread(axis, new[axis] // look.batch), [-1 if n == axis else size for n, size in enumerate(new)]


def _expand(node: fx.Node, look: _Look) -> Result:
    spread, old, new = look.only_first(node), look.sizes[node.all_input_nodes[0]], look.sizes[node]
    axis = spread.axis + len(new) - len(old)
    if new[axis] != spread.rows * look.batch:
        raise Mixed("repeats the samples")
    return replace(spread, axis=axis), [-1 if n == axis else size for n, size in enumerate(new)]


_ELEMENTWISE = """abs add ceil clamp div elu erf exp floor gelu hardsigmoid hardswish leaky_relu log maximum minimum mul neg pow
reciprocal relu sigmoid softplus sqrt sub tanh where _to_copy"""
_BY_SAMPLE = [
    f"{kind}{n}d" for n in (1, 2, 3) for kind in ("conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_avg_pool")
]
_BY_SAMPLE += [f"{kind}{n}d" for n in (1, 2, 3) for kind in ("reflection_pad", "replication_pad", "upsample_nearest")]
_BY_SAMPLE += ["upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "batch_norm", "prelu"]

_RULES: dict[str, Callable[[fx.Node, _Look], Any]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_BY_SAMPLE, _by_sample),
    **dict.fromkeys(("softmax", "log_softmax", "slice", "index_select"), _along("dim")),
    **dict.fromkeys(("mean", "sum", "amax"), _dropping("dim")),
    "cat": _cat,
    "constant_pad_nd": _pad,
    "expand": _expand,
    "flip": _along("dims"),
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "permute": _permute,
    "select": _dropping("dim"),
    "view": _view,
}
"""Operator -> where the samples lie in its result; what is not here has no proof."""
