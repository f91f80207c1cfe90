"""Quantize and dequantize nodes in a graph: PyTorch's standard operators (`quantized_decomposed`), written and read.

The codes of the value `relu` are called `relu/codes`, what they decode to is `relu/real`.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.ao.quantization.fx import _decomposed as _registers_the_operators  # noqa: F401

from exactq.graphs.graph import Edit, Graph, constant
from exactq.numerics.formats import Format, Grid

CODES, REAL = "/codes", "/real"

_ops: Any = torch.ops.quantized_decomposed
QUANTIZE = {_ops.quantize_per_tensor.default, _ops.quantize_per_channel.default}
DEQUANTIZE = {_ops.dequantize_per_tensor.default, _ops.dequantize_per_channel.default}
_PER_TENSOR = {_ops.quantize_per_tensor.default, _ops.dequantize_per_tensor.default}


_DYNAMIC = {_ops.choose_qparams.tensor, _ops.quantize_per_tensor.tensor, _ops.dequantize_per_tensor.tensor}
RANGE, SCALE, ZERO = "/range", "/scale", "/zero"
_SMALLEST = 6.1e-5
"""The least scale of a grid that is made at run time, as PyTorch's engines have it (fbgemm src/QuantUtils.cc)."""


@dataclass(frozen=True, eq=False)
class QuantizeNode:
    """What a quantize or dequantize node says: what it reads, on which grid, along which axis (None: one scale)."""

    source: fx.Node
    grid: Grid
    axis: int | None


def quantize(edit: Edit, source: fx.Node, grid: Grid, name: str, axis: int | None = None) -> fx.Node:
    """A node that encodes `source`, named `name/codes`, at the insertion point; with an axis, one scale per channel."""
    return _write(edit, "quantize", source, grid, name, name + CODES, axis)


def dequantize(edit: Edit, codes: fx.Node, grid: Grid, name: str, axis: int | None = None) -> fx.Node:
    """A node that decodes `codes`, named `name/real`, at the insertion point."""
    return _write(edit, "dequantize", codes, grid, name, name + REAL, axis)


def _write(edit: Edit, verb: str, source: fx.Node, grid: Grid, base: str, name: str, axis: int | None) -> fx.Node:
    fmt = grid.format
    bounds = (fmt.lo, fmt.hi, fmt.dtype)
    if axis is None:
        op = getattr(_ops, f"{verb}_per_tensor").default
        return edit.call(name, op, source, grid.scale.item(), int(grid.zero), *bounds)
    op = getattr(_ops, f"{verb}_per_channel").default
    scale = _shared(edit, f"{base}_scale", grid.scale.flatten())
    zero = _shared(edit, f"{base}_zero", grid.zero.flatten().to(torch.int64))
    return edit.call(name, op, source, scale, zero, axis, *bounds)


def makes_grid(node: fx.Node) -> bool:
    """Whether a node is one of those that `quantize_dynamically` writes."""
    read: Any = node.args[0] if node.target is operator.getitem else node
    return read.target in _DYNAMIC


@dataclass(frozen=True)
class DynamicNode:
    """What the dequantize node behind a grid that is made at run time says: whose reals, and the codes of their range."""

    source: fx.Node
    format: Format
    reduce_range: bool


def quantize_dynamically(edit: Edit, source: fx.Node, fmt: Format, name: str, *, reduce_range: bool) -> fx.Node:
    """A node that gives `source` rounded to a grid made of `source` itself, named `name/real`, at the insertion point.

    Before it the nodes that make the grid and the codes, as PT2E writes them; with `reduce_range` the lower half of the codes
    is for the range.
    """
    bounds, top = (fmt.lo, fmt.hi, fmt.dtype), fmt.hi // 2 if reduce_range else fmt.hi
    made = edit.call(name + RANGE, _ops.choose_qparams.tensor, source, fmt.lo, top, _SMALLEST, fmt.dtype)
    at = [edit.call(name + end, operator.getitem, made, n) for n, end in enumerate((SCALE, ZERO))]
    codes = edit.call(name + CODES, _ops.quantize_per_tensor.tensor, source, *at, *bounds)
    return edit.call(name + REAL, _ops.dequantize_per_tensor.tensor, codes, *at, *bounds)


def read_dynamic(node: fx.Node) -> DynamicNode | None:
    """What the last of the nodes that `quantize_dynamically` writes says, or None for any other node."""
    if node.target is not _ops.dequantize_per_tensor.tensor:
        return None
    args: Any = node.args
    codes, scale, zero, lo, hi, dtype = args[:6]
    made = [n.args[0] for n in (scale, zero) if n.target is operator.getitem]
    if codes.target is not _ops.quantize_per_tensor.tensor or len(made) != 2 or made[0] is not made[1]:
        return None
    chosen, source = made[0], codes.args[0]
    if chosen.target is not _ops.choose_qparams.tensor or chosen.args[0] is not source:
        return None
    return DynamicNode(source, _format(lo, hi, dtype), chosen.args[2] != hi)


def set_grid(edit: Edit, node: fx.Node, grid: Grid) -> None:
    """Nothing; a quantize or dequantize node has another grid of the same format and as many scales.

    The nodes of one value share their constants, so each of them has to get the same grid.
    """
    source, scale, zero, *bounds = node.args
    if node.target in _PER_TENSOR:
        node.args = (source, grid.scale.item(), int(grid.zero), *bounds)
    else:
        assert isinstance(scale, fx.Node)
        assert isinstance(zero, fx.Node)
        edit.set_constant(scale, grid.scale.flatten())
        edit.set_constant(zero, grid.zero.flatten().to(torch.int64))


def _shared(edit: Edit, name: str, value: Tensor) -> fx.Node:
    """The constant of that name where it is there already with the same values, a new one otherwise."""
    for node in edit:
        if node.op == "get_attr" and edit.value(node) == name and torch.equal(edit.tensor(node), value):
            return node
    return edit.constant(name, value)


def read_quantize(graph: Graph, node: fx.Node) -> QuantizeNode | None:
    """What a quantize node says, or None for any other node."""
    return _read(graph, node) if node.target in QUANTIZE else None


def read_dequantize(graph: Graph, node: fx.Node) -> QuantizeNode | None:
    """What a dequantize node says, or None for any other node."""
    return _read(graph, node) if node.target in DEQUANTIZE else None


def _read(graph: Graph, node: fx.Node) -> QuantizeNode:
    args: Any = node.args
    if node.target in _PER_TENSOR:
        source, scale, zero, lo, hi, dtype = args
        return QuantizeNode(source, Grid(_format(lo, hi, dtype), torch.tensor(scale, dtype=torch.float32), _int(zero)), None)
    source, scales, zeros, axis, lo, hi, dtype = args
    scale_values, zero_values = constant(graph.module, scales), constant(graph.module, zeros).to(torch.int32)
    rank = constant(graph.module, source).ndim if source.op == "get_attr" else _rank(graph, source)
    shape = [1] * rank
    shape[axis] = -1
    grid = Grid(_format(lo, hi, dtype), scale_values.to(torch.float32).reshape(shape), zero_values.reshape(shape))
    return QuantizeNode(source, grid, axis)


def _rank(graph: Graph, node: fx.Node) -> int:
    while node.op != "get_attr":
        node = node.args[0]  # type: ignore[assignment]
    return constant(graph.module, node).ndim


def _int(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int32)


def _format(lo: int, hi: int, dtype: torch.dtype) -> Format:
    bits = torch.iinfo(dtype).bits
    return Format(bits, lo, hi)
