"""A compute layer or an addition and the clamp behind it, which a runtime does in one go: y = clamp(f(x), lo, hi).

The graph stays as it is. The plan reads the pattern: the root then never has codes of its own, it stays in the accumulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import fx

from exactq.graphs.graph import Graph, arguments, op_name
from exactq.graphs.programs import is_compute

aten = torch.ops.aten


@dataclass(frozen=True)
class Pattern:
    """`activation` is the only reader of `root` and keeps it within [lo, hi]."""

    root: str
    activation: str
    lo: float
    hi: float


def patterns(graph: Graph) -> tuple[Pattern, ...]:
    """Each convolution, linear layer or addition of two values whose only reader is a relu or a clamp, in order."""
    found = []
    for node in graph.calls:
        (reader,) = node.users if len(node.users) == 1 else (None,)
        limits = bounds(reader) if reader is not None else None
        if limits is not None and reader is not None and reader.args[0] is node and _is_root(node):
            found.append(Pattern(graph.name(node), graph.name(reader), *limits))
    return tuple(found)


def find_patterns(graph: Graph) -> dict[str, str]:
    """Root name -> activation name of each pattern."""
    return {pattern.root: pattern.activation for pattern in patterns(graph)}


def bounds(node: fx.Node) -> tuple[float, float] | None:
    """The limits of a relu (0, ∞) or of a clamp with literals, in any spelling; None for everything else."""
    if node.target is aten.relu.default:
        return 0.0, inf
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    if node.target is aten.clamp.default:
        lo, hi = arguments(node)["min"], arguments(node)["max"]
    elif node.target is aten.hardtanh.default:
        lo, hi = arguments(node)["min_val"], arguments(node)["max_val"]
    else:
        return None
    return (-inf if lo is None else float(lo)), (inf if hi is None else float(hi))


def _is_root(node: fx.Node) -> bool:
    if op_name(node) == "aten.add":
        both = all(isinstance(arguments(node)[side], fx.Node) for side in ("self", "other"))
        return both and arguments(node).get("alpha", 1) == 1
    return is_compute(node)
