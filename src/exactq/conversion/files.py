"""Files of exactq's own, and Q/DQ graphs alone, as quantized models: the float form is what the codes stand for."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, fx

from exactq.conversion.given import RECIPE
from exactq.errors import ModelError, TargetError, UsageError
from exactq.graphs.graph import Edit, Graph, arguments, op_name
from exactq.graphs.programs import COMPUTE
from exactq.graphs.qdq import CODES, DEQUANTIZE, QUANTIZE, REAL, read_dequantize, read_quantize
from exactq.numerics.formats import INT32, Grid
from exactq.plans.plan import Fixed, FixedChannels, Float, Fused, Plan, Product, Slot
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
    edit = Edit(graph)
    mine = {edit.value(n): n for n in edit}
    for node in graph.calls:
        if node.target in DEQUANTIZE:
            _decode(graph, edit, node, mine, grids)
    for node in graph.calls:
        if (q := read_quantize(graph, node)) is not None and q.source.op != "get_attr":
            grids[graph.name(q.source)] = q.grid, None
        elif op_name(node).removeprefix("aten.") in COMPUTE:
            given = arguments(node)
            if (bias := given.get("bias")) is not None and (name := _constant(graph, bias)) in grids:
                biases[name] = _read(graph, node.args[0]), _constant(graph, given["weight"])
    float_graph = edit.freeze()
    if not grids:
        raise ModelError("no value of the model has codes: nothing in it is quantized")
    slots = {graph_name: _slot(float_graph, graph_name, grids, biases, by) for graph_name in map(float_graph.name, float_graph)}
    return Quantized(float_graph, graph, Plan(target, isa, RECIPE, slots))


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


def _constant(graph: Graph, node: fx.Node) -> str:
    """The name of the constant behind its own codes."""
    while node.target in QUANTIZE or node.target in DEQUANTIZE:
        node = node.all_input_nodes[0]
    return graph.name(node).removesuffix(CODES)


def _read(graph: Graph, node: object) -> str:
    """The name of the value that a layer reads."""
    assert isinstance(node, fx.Node)
    return _constant(graph, node).removesuffix(REAL)


def _slot(
    graph: Graph, name: str, grids: dict[str, tuple[Grid, int | None]], biases: dict[str, tuple[str, str]], by: str
) -> Slot:
    if name in biases:
        return Product(biases[name], INT32, f"its codes are given {by}")
    if name in grids:
        grid, axis = grids[name]
        if axis is None:
            return Fixed(grid.format, float(grid.scale), int(grid.zero), f"its grid is given {by}")
        scales, zeros = (tuple(_numbers(t)) for t in (grid.scale, grid.zero))
        return FixedChannels(grid.format, scales, tuple(int(z) for z in zeros), axis, f"its grid is given {by}")
    users = [user for user in graph.node(name).users if user.op != "output"]
    if len(users) == 1 and op_name(users[0]) in ("aten.relu", "aten.clamp") and graph.name(users[0]) in grids:
        return Fused(graph.name(users[0]), "the activation behind it has the codes")
    return Float(f"no codes are given {by}")


def _numbers(values: Tensor) -> list[float]:
    return [float(v) for v in values.flatten()]
