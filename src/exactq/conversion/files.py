"""Files of exactq's own, and Q/DQ graphs alone, as quantized models: the float form is what the codes stand for."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import fx

from exactq.conversion.given import RECIPE
from exactq.errors import ModelError, TargetError, UsageError
from exactq.graphs.graph import Edit, Graph, arguments, op_name
from exactq.graphs.programs import COMPUTE
from exactq.graphs.qdq import CODES, DEQUANTIZE, QUANTIZE, read_dequantize, read_dynamic, read_quantize
from exactq.numerics.formats import INT32, Grid
from exactq.plans.plan import Dynamic, Edge, Fixed, FixedChannels, Float, Fused, Plan, Product, Slot
from exactq.quantized import Quantized
from exactq.targets import TARGETS


def open_file(path: Path) -> Quantized:
    """The model of a file that a target's `emit` wrote. Nothing in it is executed.

    Raises `UsageError` for a file that cannot be read, `ModelError` for one that no target knows as its own.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from error
    readers = [t for t in TARGETS.values() if t.reads is not None]
    refused: list[str] = []
    for target in readers:
        if target.suffix != path.suffix or target.reads is None:
            continue
        try:
            graph = target.reads(data)
        except TargetError as error:
            refused.append(str(error))
            continue
        return alone(graph, target=target.name, isa=target.detect_isa(), by="by the file")
    known = ", ".join(sorted({t.suffix for t in readers}))
    raise ModelError(f"{path.name} is no quantized model that exactq reads ({refused[0] if refused else f'it reads {known}'})")


def alone(graph: Graph, *, target: str, isa: str, by: str) -> Quantized:
    """The model of a Q/DQ graph whose weights are codes or reals behind a quantize node; `by` ends a sentence: "by the file".

    Raises `ModelError` for a graph without any codes.
    """
    grids: dict[str, tuple[Grid, int | None]] = {}
    biases: dict[str, tuple[str, str]] = {}
    edges: dict[Edge, Slot] = {}
    edit = Edit(graph)
    mine = {edit.value(n): n for n in edit}
    for node in graph.calls:
        if node.target in DEQUANTIZE:
            _decode(graph, edit, node, mine, grids)
        elif (made := read_dynamic(node)) is not None:
            slot = Dynamic(made.format, f"at run time, asked for {by}", made.reduce_range)
            edges |= {Edge(_constant(graph, made.source), graph.name(reader)): slot for reader in node.users}
            mine[graph.name(node)].replace_all_uses_with(mine[graph.name(made.source)])
    for node in graph.calls:
        if (q := read_quantize(graph, node)) is not None and q.source.op != "get_attr":
            value, _, reader = graph.name(node).removesuffix(CODES).partition("@")
            if reader:
                edges[Edge(value, reader)] = _fixed(q.grid, by)
            else:
                grids[value] = q.grid, None
        elif op_name(node).removeprefix("aten.") in COMPUTE:
            given = arguments(node)
            if (bias := given.get("bias")) is not None and (name := _constant(graph, bias)) in grids:
                biases[name] = _constant(graph, node.args[0]), _constant(graph, given["weight"])
    float_graph = edit.freeze()
    if not grids:
        raise ModelError("no value of the model has codes: nothing in it is quantized")
    steps = TARGETS[target].lower(graph, isa).steps
    into = {name: behind for step in steps for name, behind in pairwise(step.covers)}
    slots = {name: _slot(name, grids, biases, into, by) for name in map(float_graph.name, float_graph)}
    return Quantized(float_graph, graph, Plan(target, isa, RECIPE, slots, edges))


def _decode(
    graph: Graph, edit: Edit, node: fx.Node, mine: dict[str, fx.Node], grids: dict[str, tuple[Grid, int | None]]
) -> None:
    """Let the readers of a dequantize node read what it decodes: the value itself, or a constant's reals."""
    dq = read_dequantize(graph, node)
    assert dq is not None
    q = read_quantize(graph, dq.source) if dq.source.op == "call_function" else None
    source = dq.source if q is None else q.source
    own = mine[graph.name(source)]
    if source.op == "get_attr":
        value = edit.tensor(own)
        codes = value if q is None else q.grid.encode(value)
        edit.set_constant(own, dq.grid.decode(codes))
        name = graph.name(source).removesuffix(CODES)
        edit.name(own, name)
        grids[name] = dq.grid, dq.axis
    mine[graph.name(node)].replace_all_uses_with(own)


def _constant(graph: Graph, node: Any) -> str:
    """The name of the value behind its own codes."""
    while node.target in QUANTIZE or node.target in DEQUANTIZE:
        node = node.all_input_nodes[0]
    return graph.name(node).removesuffix(CODES)


def _slot(
    name: str,
    grids: Mapping[str, tuple[Grid, int | None]],
    biases: Mapping[str, tuple[str, str]],
    into: Mapping[str, str],
    by: str,
) -> Slot:
    if name in biases:
        return Product(biases[name], INT32, f"its codes are given {by}")
    if name in grids:
        grid, axis = grids[name]
        if axis is None:
            return _fixed(grid, by)
        scales, zeros = grid.scale.flatten().tolist(), grid.zero.flatten().tolist()
        return FixedChannels(grid.format, tuple(scales), tuple(zeros), axis, f"its grid is given {by}")
    if name in into:
        return Fused(into[name], "the same kernel makes both")
    return Float(f"no codes are given {by}")


def _fixed(grid: Grid, by: str) -> Fixed:
    return Fixed(grid.format, float(grid.scale), int(grid.zero), f"its grid is given {by}")
