"""Clamps that only narrow a grid, as the narrower grid: codes of 0..127 may be written as a clamp in front of codes of 0..255.

Rounding is monotone, so rint(clamp(x, a, b) / s) is rint(x / s) clamped to the codes of a and b where these lie on the grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from exactq.graphs.graph import Edit, Graph, arguments, op_name
from exactq.graphs.qdq import DEQUANTIZE, read_dequantize, read_quantize
from exactq.numerics.formats import Grid


def narrowed(graph: Graph, others: Mapping[str, fx.Node]) -> tuple[Graph, dict[str, str]]:
    """The graph without the clamps that `others`, the operators of another graph of the model, does not have.

    Each leaves a narrower grid behind. With it the name that a key had before, for those that have another now.
    """
    edit, renames = Edit(graph), dict[str, str]()
    copies = {edit.value(n): n for n in edit}
    for node in graph.calls:
        q = read_quantize(graph, node)
        clamp = None if q is None else q.source
        if q is None or clamp is None or clamp.op != "call_function" or op_name(clamp) != "aten.clamp":
            continue
        name, ends = graph.name(clamp), _ends(clamp, q.grid)
        if _has_it(others.get(name)) or ends is None or len(clamp.users) != 1:
            continue
        source = _behind(graph, clamp, q.grid)
        mine = copies[graph.name(node)]
        for reader in (mine, *(n for n in mine.users if n.target in DEQUANTIZE)):
            reader.args = (*reader.args[:3], *ends, *reader.args[5:])
        mine.args = (copies[graph.name(source)], *mine.args[1:])
        key = graph.name(source)
        if source.op == "call_function" and key not in others:
            edit.name(copies[name], f"{name}/clamp")
            edit.name(copies[key], name)
            continue
        edit.name(mine, f"{key}/codes")
        renames[key] = name
    return edit.freeze(), renames


def _has_it(other: fx.Node | None) -> bool:
    return other is not None and op_name(other) == "aten.clamp"


def _ends(clamp: fx.Node, grid: Grid) -> tuple[int, int] | None:
    """The codes at a clamp's bounds; None where they are not on the grid, or do not narrow it."""
    given = arguments(clamp)
    ends = []
    for bound, end in ((given.get("min"), grid.format.lo), (given.get("max"), grid.format.hi)):
        if isinstance(bound, fx.Node):
            return None
        if bound is None:
            ends.append(end)
            continue
        real = torch.tensor(float(bound))
        code = grid.encode(real)
        if not bool(torch.isclose(grid.decode(code), real, rtol=2.0**-22, atol=0.0)):
            return None
        ends.append(int(code))
    lo, hi = ends
    return (lo, hi) if lo < hi and (lo, hi) != (grid.format.lo, grid.format.hi) else None


def _behind(graph: Graph, clamp: fx.Node, grid: Grid) -> fx.Node:
    """What a clamp bounds: its operand, or what is encoded on the same grid right in front of it."""
    operand = clamp.all_input_nodes[0]
    dq = read_dequantize(graph, operand) if operand.op == "call_function" else None
    q = None if dq is None else read_quantize(graph, dq.source)
    return q.source if q is not None and q.grid.same_as(grid) and q.source.op != "get_attr" else operand
