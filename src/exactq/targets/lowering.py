"""What every target's lowering reads from a Q/DQ graph, and what it says of float islands. It knows no runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from exactq.graphs.graph import Graph, constant, op_name
from exactq.graphs.qdq import read_dequantize, read_quantize
from exactq.numerics.formats import Grid
from exactq.traces import Step

_ROUND_ONCE = "relu clamp add sub mul div neg abs cat".split()
_MOVE = "view flatten unsqueeze squeeze permute transpose slice constant_pad_nd max_pool1d max_pool2d max_pool3d".split()
_COPY = "split split_with_sizes unbind select stack expand clone repeat".split()
EXACT_IN_FLOAT = {"getitem"} | {f"aten.{op}" for op in (*_ROUND_ONCE, *_MOVE, *_COPY)}
"""Float operators with one IEEE rounding an element at most: the same bits in every library."""


def rounds_once(node: fx.Node) -> bool:
    """Whether the float operator gives the same bits in every library."""
    return op_name(node) in EXACT_IN_FLOAT and node.kwargs.get("rounding_mode") is None


def mark_inexact(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps, those that read an inexact real being inexact too.

    Codes made of it, and reals that the runtime shows, restart from what the runtime made.
    """
    tainted: dict[str, str] = {}
    for step in steps:
        reason = step.inexact or next((tainted[i] for i in step.inputs if i in tainted), None)
        if reason is not None and step.grid is None and not step.shown:
            tainted[step.name] = reason
        yield step if reason == step.inexact else replace(step, inexact=reason)


@dataclass(frozen=True)
class Operand:
    """Decoded codes that an operator reads: their name and grid."""

    name: str
    grid: Grid


def operand(graph: Graph, node: Any) -> Operand | None:
    """The codes behind a value that was decoded from one grid for the whole tensor; None for any other."""
    dq = read_dequantize(graph, node) if isinstance(node, fx.Node) and node.op == "call_function" else None
    return None if dq is None or dq.axis is not None else Operand(graph.name(dq.source), dq.grid)


def folded(graph: Graph, node: Any) -> tuple[Tensor, Grid] | None:
    """Codes and grid of a constant: a weight behind quantize and dequantize nodes, or codes behind a dequantize node."""
    dq = read_dequantize(graph, node) if isinstance(node, fx.Node) and node.op == "call_function" else None
    if dq is None:
        return None
    if dq.source.op == "get_attr":
        return constant(graph.module, dq.source), dq.grid
    q = read_quantize(graph, dq.source)
    if q is None or q.source.op != "get_attr":
        return None
    return q.grid.encode(constant(graph.module, q.source)), q.grid
