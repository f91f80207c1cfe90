"""A Q/DQ graph -> a program of MLAS kernels on codes, the float islands between them explicit.

It follows ONNX Runtime's own choice: an operator between dequantize and quantize nodes becomes one integer kernel, with an
activation behind it only where the output grid already ends at the activation's bounds. Everything else runs in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from exactq.graphs.graph import Graph, constant, op_name
from exactq.graphs.programs import bind
from exactq.graphs.qdq import QuantizeNode, read_dequantize, read_quantize
from exactq.kernels.anatomy import Anatomy, Moved, bounded
from exactq.kernels.mlas import ANATOMIES, KERNELS, dequantize_linear
from exactq.numerics.formats import Format, Grid
from exactq.numerics.requantization import stored
from exactq.targets.lowering import Operand, folded, mark_inexact, operand, rounds_once
from exactq.targets.onnxruntime.operators import MOVES
from exactq.traces import Program, Step


def lower(graph: Graph, isa: str) -> Program:
    """The emulator of `graph` on ONNX Runtime's CPU kernels for an instruction set of `kernels.mlas.ISAS`.

    Steps are named like the graph's nodes: `layer1.0.relu/codes` holds codes. Each step whose bits may differ from the
    runtime's says why in `inexact`.
    """
    inputs = tuple(i.name for i in graph.inputs)
    live = Program(inputs, tuple(_steps(graph, isa)), graph.outputs).towards(graph.outputs)
    return replace(live, steps=tuple(mark_inexact(live.steps)))


def _steps(graph: Graph, isa: str) -> Iterator[Step]:
    for node in graph.calls:
        name = graph.name(node)
        if (q := read_quantize(graph, node)) is not None:
            if q.source.op == "get_attr":  # read in float only: kernels take the folded codes
                yield Step(name, partial(q.grid.encode, constant(graph.module, q.source)), (), "constant", q.grid)
            else:
                yield _codes(graph, node, q, isa)
        elif (dq := read_dequantize(graph, node)) is not None:
            if dq.axis is None and dq.source.op != "get_attr":
                yield Step(name, dequantize_linear(dq.grid), (graph.name(dq.source),), "mlas.dequantize_linear")
            else:
                run, reads = bind(graph, node)
                yield Step(name, run, reads, "constant")
        else:
            run, reads = bind(graph, node)
            op = op_name(node)
            yield Step(name, run, reads, op, inexact=None if rounds_once(node) else _inexact(op))


def _inexact(op: str) -> str:
    return f"`{op.removeprefix('aten.')}` runs in ONNX Runtime's float kernels, whose last bits are not predicted"


def _codes(graph: Graph, node: fx.Node, q: QuantizeNode, isa: str) -> Step:
    """The step that makes these codes: one integer kernel where the runtime has one, QuantizeLinear on the real otherwise.

    Codes narrower than their storage are bounded behind it.
    """
    name, root = graph.name(node), q.source
    if (moved := _moved(graph, name, q)) is not None:
        return moved
    source, y = q.source, stored(q.grid)
    if op_name(root) in ("aten.relu", "aten.clamp") and len(root.users) == 1:
        behind = root.all_input_nodes[0]
        makes = behind.op == "call_function" and len(behind.users) == 1 and read_dequantize(graph, behind) is None
        if makes and implied(root, y):
            root = behind
        elif removed(root, y):
            source = behind
    maker = _KERNELS.get(op_name(root)) if root.op == "call_function" and len(root.users) == 1 else None
    made = maker(graph, root, y, isa) if maker is not None else None
    covers: tuple[str, ...] = (graph.name(root),) if root is q.source else (graph.name(root), graph.name(q.source))
    if made is None:
        made, covers = _made("quantize_linear", (graph.name(source),), y), ()
    if y.format != q.grid.format:
        made = _bounded(made, q.grid.format)
    return Step(name, made.run, made.reads, f"mlas.{made.kernel}", q.grid, covers=covers, anatomy=made.anatomy)


def removed(activation: fx.Node, grid: Grid) -> bool:
    """Whether ONNX Runtime removes a relu or clamp in front of this grid, whatever stands before it.

    relu_quantizelinear.cc: the zero is the lowest code. clip_quantizelinear.cc: the grid's ends exceed the bounds by 2⁻²³ at
    most, an absolute number: with a scale below that, codes beyond the bounds appear, here as there.
    """
    ends = grid.format.lo - int(grid.zero), grid.format.hi - int(grid.zero)
    if op_name(activation) == "aten.relu":
        return ends[0] == 0
    if any(isinstance(bound, fx.Node) for bound in activation.args[1:]):
        return False
    low, high = _bounds(activation)
    epsilon = torch.finfo(torch.float32).eps
    return float(low - grid.scale * ends[0]) <= epsilon and float(grid.scale * ends[1] - high) <= epsilon


def implied(activation: fx.Node, grid: Grid) -> bool:
    """Whether the kernel in front of a relu or clamp fuses with this grid behind it, so that the activation does nothing.

    It does where the activation was `removed`, or where both bounds round to codes at the ends or beyond
    (qdq_util.cc IsClipMadeRedundantByQ, which converts to int32: a quotient beyond it becomes −2³¹).
    """
    fixed = not any(isinstance(bound, fx.Node) for bound in activation.args[1:])
    if removed(activation, grid) or op_name(activation) == "aten.relu" or not fixed:
        return removed(activation, grid)
    low, high = (_int32(float(torch.round(bound / grid.scale))) + int(grid.zero) for bound in _bounds(activation))
    return low <= grid.format.lo and high >= grid.format.hi


def _bounds(clamp: fx.Node) -> tuple[Tensor, Tensor]:
    """The bounds of a clamp in float32, the largest reals where there is none."""
    largest = torch.finfo(torch.float32).max
    low, high = _arg(clamp, 1, "min", None), _arg(clamp, 2, "max", None)
    return torch.tensor(-largest if low is None else float(low)), torch.tensor(largest if high is None else float(high))


def _int32(value: float) -> int:
    return int(value) if -(2.0**31) <= value < 2.0**31 else -(2**31)


def _moved(graph: Graph, name: str, q: QuantizeNode) -> Step | None:
    """Movement of codes that stay on their grid, as a step on the codes themselves."""
    node = q.source
    if node.op != "call_function" or op_name(node) not in MOVES or len(node.users) != 1:
        return None
    x = operand(graph, node.all_input_nodes[0])
    if x is None or not x.grid.same_as(q.grid):
        return None
    run, _ = bind(graph, node)
    if op_name(node) == "aten.constant_pad_nd":
        value = float(node.args[2]) if len(node.args) > 2 else 0.0  # type: ignore[arg-type]
        fill = float(q.grid.encode(torch.tensor(value)))
        run = partial(F.pad, pad=list(node.args[1]), value=fill)  # type: ignore[arg-type]
    anatomy = _largest(node) if "max_pool" in op_name(node) else Moved()
    return Step(name, run, (x.name,), f"{op_name(node)} on codes", q.grid, covers=(graph.name(node),), anatomy=anatomy)


def _largest(node: fx.Node) -> Anatomy:
    rank = int(op_name(node)[-2])
    kernel = _axes(node.args[1], rank)
    return ANATOMIES["max_pool"](
        kernel=kernel,
        stride=_axes(_arg(node, 2, "stride", []) or kernel, rank),
        padding=_axes(_arg(node, 3, "padding", 0), rank) * 2,
        dilation=_axes(_arg(node, 4, "dilation", 1), rank),
    )


@dataclass(frozen=True)
class Made:
    """A kernel with its constants in place, its anatomy, the codes it reads, and its name."""

    run: Callable[..., Tensor]
    anatomy: Anatomy
    reads: tuple[str, ...]
    kernel: str


def _made(kernel: str, reads: tuple[str, ...], /, *constants: Any, **options: Any) -> Made:
    return Made(KERNELS[kernel](*constants, **options), ANATOMIES[kernel](*constants, **options), reads, kernel)


def _bounded(made: Made, fmt: Format) -> Made:
    """The kernel and the Clip of its codes behind it."""

    def run(*codes: Tensor) -> Tensor:
        return made.run(*codes).clamp(fmt.lo, fmt.hi)

    return replace(made, run=run, anatomy=bounded(made.anatomy, fmt.lo, fmt.hi), kernel=f"{made.kernel} and clip")


Maker = Callable[[Graph, fx.Node, Grid, str], Made | None]
"""The kernel of an operator with that output grid; None where it runs in float."""


def _arg(node: fx.Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, list | tuple) else (int(value),)


def _axes(value: Any, rank: int) -> tuple[int, ...]:
    numbers = _tuple(value)
    return numbers * rank if len(numbers) == 1 else numbers


def _weighted(graph: Graph, node: fx.Node) -> tuple[Operand, Tensor, Grid, Tensor | None] | None:
    x, weight = operand(graph, node.args[0]), folded(graph, node.args[1])
    bias_node = _arg(node, 2, "bias", None)
    bias = None if bias_node is None else folded(graph, bias_node)
    if x is None or weight is None or (bias is None) != (bias_node is None):
        return None
    return x, *weight, None if bias is None else bias[0]


def _conv(graph: Graph, node: fx.Node, y: Grid, isa: str) -> Made | None:
    if (found := _weighted(graph, node)) is None:
        return None
    x, weight, w, bias = found
    rank = weight.ndim - 2
    stride, padding, dilation = (
        _tuple(_arg(node, i, n, d)) for i, n, d in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    padding = padding * rank if len(padding) == 1 else padding
    groups = int(_arg(node, 6, "groups", 1))
    options = {"stride": stride, "padding": padding * 2, "dilation": dilation, "groups": groups}
    return _made("conv", (x.name,), weight, bias, x=x.grid, w=w, y=y, isa=isa, **options)


def _linear(graph: Graph, node: fx.Node, y: Grid, isa: str) -> Made | None:
    if (found := _weighted(graph, node)) is None:
        return None
    x, weight, w, bias = found
    return _made("gemm", (x.name,), weight, bias, x=x.grid, w=w, y=y, isa=isa)


def _binary(kernel: str) -> Maker:
    def make(graph: Graph, node: fx.Node, y: Grid, isa: str) -> Made | None:
        a, b = operand(graph, node.args[0]), operand(graph, node.args[1])
        if a is None or b is None or node.kwargs.get("alpha", 1) != 1:
            return None
        return _made(kernel, (a.name, b.name), a.grid, b.grid, y)

    return make


def _matmul(graph: Graph, node: fx.Node, y: Grid, isa: str) -> Made | None:
    a, b = operand(graph, node.args[0]), operand(graph, node.args[1])
    if a is None or b is None:
        return None
    return _made("matmul", (a.name, b.name), a=a.grid, b=b.grid, y=y, isa=isa)


def _unary(kernel: str, options: Callable[[fx.Node], dict[str, Any] | None] = lambda node: {}) -> Maker:
    def make(graph: Graph, node: fx.Node, y: Grid, isa: str) -> Made | None:
        x, given = operand(graph, node.args[0]), options(node)
        return None if x is None or given is None else _made(kernel, (x.name,), x.grid, y, **given)

    return make


def _leaky(node: fx.Node) -> dict[str, Any]:
    return {"slope": float(_arg(node, 1, "negative_slope", 0.01))}


def _adaptive(node: fx.Node) -> dict[str, Any] | None:
    return {} if all(s == 1 for s in _tuple(node.args[1])) else None


def _average(node: fx.Node) -> dict[str, Any]:
    rank = int(op_name(node)[-2])
    kernel = _axes(node.args[1], rank)
    return {
        "kernel": kernel,
        "stride": _axes(_arg(node, 2, "stride", []) or kernel, rank),
        "padding": _axes(_arg(node, 3, "padding", 0), rank) * 2,
        "ceil": bool(_arg(node, 4, "ceil_mode", False)),
        "count_include_pad": bool(_arg(node, 5, "count_include_pad", True)),
    }


def _concat(graph: Graph, node: fx.Node, y: Grid, isa: str) -> Made | None:
    operands = [operand(graph, n) for n in node.args[0]]  # type: ignore[union-attr]
    known = [o for o in operands if o is not None]
    if len(known) != len(operands):
        return None
    axis = int(_arg(node, 1, "dim", 0))
    return _made("concat", tuple(o.name for o in known), [o.grid for o in known], y, axis=axis)


_KERNELS: dict[str, Maker] = {
    "aten.conv1d": _conv,
    "aten.conv2d": _conv,
    "aten.conv3d": _conv,
    "aten.linear": _linear,
    "aten.matmul": _matmul,
    "aten.add": _binary("add"),
    "aten.mul": _binary("mul"),
    "aten.cat": _concat,
    "aten.sigmoid": _unary("sigmoid"),
    "aten.leaky_relu": _unary("leaky_relu", _leaky),
    "aten.adaptive_avg_pool1d": _unary("global_average_pool", _adaptive),
    "aten.adaptive_avg_pool2d": _unary("global_average_pool", _adaptive),
    "aten.adaptive_avg_pool3d": _unary("global_average_pool", _adaptive),
    "aten.avg_pool1d": _unary("average_pool", _average),
    "aten.avg_pool2d": _unary("average_pool", _average),
    "aten.avg_pool3d": _unary("average_pool", _average),
}
