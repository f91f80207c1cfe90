"""What the arithmetic of an execution consists of: grids, weights, biases and roundings by the names of the model's values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from exactq.difference.bounds import narrowed
from exactq.difference.executions import Execution
from exactq.graphs.graph import Graph, arguments, constant, op_name
from exactq.graphs.qdq import CODES, DEQUANTIZE, QUANTIZE, makes_grid, read_dequantize, read_dynamic, read_quantize
from exactq.kernels.accumulators import Kernel, Layer
from exactq.kernels.anatomy import IntegerBias, Products
from exactq.numerics.formats import Grid
from exactq.targets.lowering import folded

LAYERS = ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.linear")
"""The operators whose sums are exact in integers; others are computed in float64 from what their operands decode to."""

ROUNDS_BIAS = ("mlas", "qnnpack")
"""Libraries that add the bias as int32 to the accumulator; the others keep it real."""

ACTIVATIONS = ("aten.relu", "aten.clamp")
"""The operators that a kernel may leave to the end of its grid."""

ZERO_INSIDE = (
    *(f"onednn.{name}" for name in ("conv", "conv_add", "linear", "qconv_pointwise", "qconv2d_pointwise", "qlinear_pointwise")),
    *(f"quantized.{name}" for name in ("quantize_per_tensor", "mean", "adaptive_avg_pool")),
    *(f"mlas.{name}" for name in ("add", "average_pool")),
)
"""Kernels that add the output's zero before they round; the others, and fake quantization, add it after."""


@dataclass(frozen=True, eq=False)
class Weight:
    """A layer's weight: codes less the zero on `scale` (out,) in float64, or reals where `scale` is None."""

    values: Tensor
    scale: Tensor | None

    @property
    def reals(self) -> Tensor:
        """What the weight stands for, float64."""
        return self.values if self.scale is None else self.values * self.scale.reshape(-1, *[1] * (self.values.ndim - 1))


@dataclass(frozen=True, eq=False)
class Side:
    """An execution, read. Codes are named by their key: `value`, or `value@reader` where one reader has a grid of its own.

    `values`: key -> the value that is encoded; `reads`: (operator, value) -> the key it reads; `rounds_bias`: layers whose bias
    is int32, `bias_codes`: those that are known as they are; `fused`: activations that a kernel leaves to the end of its grid;
    `joined`: layers whose kernel adds other codes to the sum at once; `inside`: keys whose zero is added before the rounding;
    `dynamic`: layers that lay a grid over their input, and whether its range is reduced; `around`: the values that are reals
    before and behind them.
    """

    execution: Execution
    grids: Mapping[str, Grid]
    values: Mapping[str, str]
    reads: Mapping[tuple[str, str], str]
    weights: Mapping[str, Weight]
    biases: Mapping[str, Tensor]
    pairs: Mapping[str, Kernel]
    rounds_bias: frozenset[str]
    bias_codes: Mapping[str, Tensor]
    fused: frozenset[str]
    joined: frozenset[str]
    inside: frozenset[str]
    dynamic: Mapping[str, bool]
    around: frozenset[str]
    kernels: Mapping[str, str]
    graph: Graph
    renames: Mapping[str, str]

    def step(self, key: str) -> str:
        """The name of a key's codes in the execution's program and traces."""
        return self.renames.get(key, key) + CODES

    def shown(self, key: str) -> str:
        """The name of a key's reals there."""
        return self.renames.get(key) or self.values.get(key, key.partition("@")[0])


def sides(a: Execution, b: Execution) -> tuple[Side, Side]:
    """Two executions of one model; clamps that one of them has only to narrow a grid are narrower grids."""
    first, second = operators(a.graph), operators(b.graph)
    return side(a, *narrowed(a.graph, second)), side(b, *narrowed(b.graph, first))


def side(execution: Execution, graph: Graph, renames: Mapping[str, str]) -> Side:
    """What the arithmetic of an execution consists of; `renames` says which keys of `graph` have other names in its program."""
    grids: dict[str, Grid] = {}
    values: dict[str, str] = {}
    reads: dict[tuple[str, str], str] = {}
    weights: dict[str, Weight] = {}
    biases: dict[str, Tensor] = {}
    dynamic: dict[str, bool] = {}
    for node in graph.calls:
        if (q := read_quantize(graph, node)) is not None:
            if q.source.op != "get_attr":
                key = graph.name(node).removesuffix(CODES)
                grids[key], values[key] = q.grid, graph.name(q.source)
        elif node.target not in DEQUANTIZE and not makes_grid(node):
            for operand in node.all_input_nodes:
                if (made := read_dynamic(operand)) is not None:
                    dynamic[graph.name(node)] = made.reduce_range
                    operand = made.source
                if (read := read_key(graph, operand)) is not None:
                    reads[graph.name(node), values[read]] = read
            if op_name(node) in LAYERS:
                given = arguments(node)
                weights[graph.name(node)] = _weight(graph, given["weight"])
                if (bias := given.get("bias")) is not None:
                    biases[graph.name(node)] = real(graph, bias)
    pairs: dict[str, Kernel] = {}
    rounds, fused, joined, inside, codes = set(), set(), set(), set(), dict[str, Tensor]()
    kernels, named = {}, operators(graph)
    old = {name: key for key, name in renames.items()}
    around = set()
    for step in execution.program.steps:
        if step.grid is None:
            around |= {step.name} if step.shown else set()
            continue
        key = step.name.removesuffix(CODES)
        key = old.get(key, key)
        kernels[key] = step.kernel
        if step.kernel in ZERO_INSIDE:
            inside.add(key)
        for name in step.covers:
            if name in weights and isinstance(step.run, Layer):
                if step.run.accumulate.excess is not None:
                    pairs[name] = step.run.accumulate.excess
                if step.kernel.partition(".")[0] in ROUNDS_BIAS:
                    rounds.add(name)
                if isinstance(step.anatomy, Products) and isinstance(step.anatomy.bias, IntegerBias):
                    codes[name] = step.anatomy.bias.codes.double()
        if isinstance(step.anatomy, Products) and step.anatomy.added is not None:
            joined.add(step.covers[0])
        fused |= {name for name in step.covers[1:] if name in named and op_name(named[name]) in ACTIVATIONS}
    return Side(
        execution,
        grids,
        values,
        reads,
        weights,
        biases,
        pairs,
        frozenset(rounds),
        codes,
        frozenset(fused),
        frozenset(joined),
        frozenset(inside),
        dynamic,
        frozenset(around),
        kernels,
        graph,
        renames,
    )


def read_key(graph: Graph, node: fx.Node) -> str | None:
    """The key of the codes behind a decoded activation; None for anything else."""
    dq = read_dequantize(graph, node)
    if dq is None or dq.source.op == "get_attr":
        return None
    q = read_quantize(graph, dq.source)
    return None if q is None or q.source.op == "get_attr" else graph.name(dq.source).removesuffix(CODES)


def operators(graph: Graph) -> dict[str, fx.Node]:
    """Name -> node of each operator of the model itself, in order."""
    written = QUANTIZE | DEQUANTIZE
    return {graph.name(n): n for n in graph.calls if n.target not in written and not makes_grid(n)}


def real(graph: Graph, node: fx.Node) -> Tensor:
    """The reals of a constant, float64: as it is, or decoded from its codes."""
    if (found := folded(graph, node)) is not None:
        return decoded(*found)
    value = constant(graph.module, node)
    return value.double() if value.is_floating_point() else value


def decoded(codes: Tensor, grid: Grid) -> Tensor:
    """The reals of codes in float64, where a product of code and float32 scale is exact."""
    return (codes.double() - grid.zero.double()) * grid.scale.double()


def encoded(value: Tensor, grid: Grid) -> Tensor:
    """The nearest codes of reals, ties to even before the zero is added, clamped; float64. NaN has the lowest code."""
    codes = torch.round(value / grid.scale.double()) + grid.zero.double()
    return codes.nan_to_num(nan=grid.format.lo).clamp(grid.format.lo, grid.format.hi)


def is_constant(graph: Graph, node: fx.Node) -> bool:
    """Whether a node's value comes from a constant alone."""
    return node.op == "get_attr" or folded(graph, node) is not None


def _weight(graph: Graph, node: fx.Node) -> Weight:
    if (found := folded(graph, node)) is None:
        return Weight(constant(graph.module, node).double(), None)
    codes, grid = found
    channels = codes.shape[0]
    scale = grid.scale.double().flatten()
    if grid.scale.numel() not in (1, channels) or (grid.scale.ndim and grid.scale.shape[0] not in (1, channels)):
        return Weight(decoded(codes, grid), None)  # blocks: a sum of codes has no one scale
    return Weight(codes.double() - grid.zero.double(), scale.expand(channels) if scale.numel() == 1 else scale)
