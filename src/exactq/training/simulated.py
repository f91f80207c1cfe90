"""The Q/DQ graph as a program of reals that has a gradient: its inputs, the trained constants and the grids are what it reads.

Every way of training walks this program; they differ in where grids come from and how rounding is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from exactq.errors import ModelError
from exactq.graphs.graph import Graph, arguments, op_name
from exactq.graphs.programs import bind
from exactq.graphs.qdq import CODES, DEQUANTIZE, QUANTIZE, REAL, read_quantize
from exactq.numerics.formats import Grid
from exactq.plans.plan import Own, PerChannel, Slot
from exactq.quantization.bias import guard
from exactq.quantization.weights import weight_grid
from exactq.traces import Program, Step, walk
from exactq.training.rounding import fake_quantize, fake_quantize_bias, substitute
from exactq.training.simulation import Passed, Start, State

GRID, SCALE, RANGE = "/grid", "/scale", "/range"
"""What follows a value's name: its grid as an input of the program, and what a state keeps of it."""


@dataclass(frozen=True)
class Rounding:
    """How reals become those of codes, differentiably: `value(x, at)`, and `bias(b, x, w)` on the products' grid.

    `at`, `x` and `w` are whatever the way of training hands the program as a grid.
    """

    value: Callable[[Tensor, Any], Tensor] = fake_quantize
    bias: Callable[[Tensor, Any, Any], Tensor] = fake_quantize_bias


@dataclass(frozen=True)
class Weight:
    """A weight that lives as codes: its line of the plan, the groups of its layers, and (bias, input's grid) of each bias."""

    slot: Slot
    given: Grid
    groups: int
    biases: tuple[tuple[str, str], ...]

    @property
    def searched(self) -> bool:
        """Whether finding its grid takes a search."""
        return isinstance(self.slot, Own) and self.slot.observer != "minmax"


@dataclass(frozen=True)
class Simulated:
    """The program, and what its grids are made of: weights by name, activations by name -> their line of the plan.

    `biases` says of each that lives as codes, by its name in the Q/DQ graph, which float constant it is and on the grids of
    which input and weight its products lie.
    """

    program: Program
    weights: Mapping[str, Weight]
    activations: Mapping[str, Slot]
    biases: Mapping[str, tuple[str, str, str]]


def simulated(start: Start, rounding: Rounding | None = None) -> Simulated:
    """The Q/DQ graph as a program of reals: inputs are the graph's, the trained constants, then the grids."""
    graph = start.qdq
    weights = {base_of(graph, node): weight for node in graph.calls if (weight := _weight(start, node)) is not None}
    activations: dict[str, Slot] = {}
    for node in graph.calls:
        if (q := read_quantize(graph, node)) is not None and q.source.op != "get_attr":
            name = source_of(start, base_of(graph, node))
            activations[name] = line_of(start, name)
    biases = {name: (float_name(start, name), *products(start, node)) for name, node in _coded_biases(graph)}
    steps = tuple(_steps(start, weights, biases, rounding or Rounding()))
    reads = (*(i.name for i in graph.inputs), *start.trained, *(name + GRID for name in (*activations, *weights)))
    return Simulated(Program(reads, steps, graph.outputs), weights, activations, biases)


def _coded_biases(graph: Graph) -> Iterator[tuple[str, fx.Node]]:
    for node in graph.calls:
        if node.target in DEQUANTIZE and node.all_input_nodes[0].op == "get_attr":
            yield graph.name(node).removesuffix(REAL), node


def _steps(
    start: Start, weights: Mapping[str, Weight], biases: Mapping[str, tuple[str, str, str]], rounding: Rounding
) -> Iterator[Step]:
    graph = start.qdq
    for node in graph.calls:
        name = graph.name(node)
        if node.target in QUANTIZE:
            continue  # its dequantize node does both
        if node.target not in DEQUANTIZE:
            run, reads = bind(graph, node, start.trained)
            yield Step(name, run, reads, op_name(node))
            continue
        base, source = name.removesuffix(REAL), node.all_input_nodes[0]
        if base in biases:
            bias, x, w = biases[base]
            yield Step(name, rounding.bias, (bias, x + GRID, w + GRID), "bias")
        elif base in weights:
            yield Step(name, rounding.value, (base, base + GRID), "weight")
        else:
            read = graph.name(source.all_input_nodes[0])
            yield Step(name, rounding.value, (read, source_of(start, base) + GRID), "activation")


def _weight(start: Start, node: fx.Node) -> Weight | None:
    """What a weight's quantize node stands for; None for any other node."""
    graph, q = start.qdq, read_quantize(start.qdq, node)
    if q is None or q.source.op != "get_attr":
        return None
    name = base_of(graph, node)
    if name not in start.trained:
        raise ModelError(f"`{name}` lives as codes, but the float model has no float weights of that name to train")
    layers = [reader for real in node.users for reader in real.users]
    biases = [arguments(layer).get("bias") for layer in layers]
    held = [
        (float_name(start, graph.name(bias).removesuffix(REAL)), products(start, bias)[0])
        for bias in biases
        if isinstance(bias, fx.Node) and bias.target in DEQUANTIZE
    ]
    groups = [int(arguments(layer).get("groups", 1)) for layer in layers if "weight" in arguments(layer)]
    return Weight(start.plan.slots[name], q.grid, min(groups, default=1), tuple(dict.fromkeys(held)))


def products(start: Start, bias: fx.Node) -> tuple[str, str]:
    """The values on whose grids a bias's layer reads its input and its weight: any of its layers, all give one product."""
    graph, layer = start.qdq, next(iter(bias.users))
    x, w = (graph.name(n).removesuffix(REAL) for n in layer.all_input_nodes[:2])
    return source_of(start, x), w


def passed(program: Program, values: Sequence[Any], keep: Collection[str], given: Mapping[str, Tensor] | None = None) -> Passed:
    """One pass through the program of a model, as `Forward` says."""
    given = {} if given is None else given
    kept = {name: value for name, value in zip(program.inputs, values, strict=True) if name in keep}

    def see(step: Step, value: Tensor) -> Tensor | None:
        put = substitute(value, given[step.name]) if step.name in given else None
        if step.name in keep:
            kept[step.name] = value if put is None else put
        return put

    return Passed(walk(program, values, see), kept)


def with_weights(weights: Mapping[str, Weight], state: State, grids: Mapping[str, Grid]) -> dict[str, Grid]:
    """`grids`, those of activations, and behind them those of the weights as they are now.

    A scale that took a search stands as the state keeps it.
    """
    found = dict(grids)
    with torch.no_grad():
        for name, weight in weights.items():
            scale = state.kept.get(name + SCALE)
            if scale is None:
                found[name] = grid_of(name, weight, state.trained, grids)
            else:
                found[name] = Grid(weight.given.format, scale, torch.zeros_like(scale, dtype=torch.int32))
    return found


def searched_scales(weights: Mapping[str, Weight], state: State, grids: Mapping[str, Grid]) -> dict[str, Tensor]:
    """The scales, searched anew, of the weights whose observer searches, as a state keeps them."""
    with torch.no_grad():
        return {n + SCALE: grid_of(n, w, state.trained, grids).scale for n, w in weights.items() if w.searched}


def small_changes(trained: Mapping[str, Tensor], weights: Mapping[str, Grid]) -> dict[str, float]:
    """A weight's mean grid step. The rest takes the same share of its size (root mean square) as the median weight does."""
    sizes = {name: float(tensor.detach().double().square().mean().sqrt()) for name, tensor in trained.items()}
    steps = {name: float(at.scale.double().mean()) for name, at in weights.items()}
    share = _median([steps[name] / sizes[name] for name in steps if sizes[name]])
    size = _median([size for size in sizes.values() if size])
    return {name: share * (sizes[name] or size) for name in sizes} | steps


def _median(numbers: list[float]) -> float:
    """The upper median, 1 of nothing."""
    return sorted(numbers)[len(numbers) // 2] if numbers else 1.0


def grid_of(name: str, weight: Weight, trained: Mapping[str, Tensor], grids: Mapping[str, Grid]) -> Grid:
    """The grid of a weight as it is now, with the arithmetic of `quantization.apply`."""
    slot, value = weight.slot, trained[name]
    if not isinstance(slot, Own):
        return weight.given
    axis = slot.per.axis if isinstance(slot.per, PerChannel) else None

    def find(floor: Tensor | None) -> Grid:
        return weight_grid(value, slot.format, axis, observer=slot.observer, groups=weight.groups, floor=floor)

    made = find(None)
    for bias, x in weight.biases:
        held, raised = guard(trained[bias], grids[x].scale, made)
        if raised:
            made = find(held.scale)
    return made


def base_of(graph: Graph, node: fx.Node) -> str:
    """The value or edge whose codes a quantize node makes."""
    return graph.name(node).removesuffix(CODES)


def source_of(start: Start, name: str) -> str:
    """The value or edge whose grid `name` has."""
    return start.plan.source(name) if name in start.plan.slots else name


def line_of(start: Start, name: str) -> Slot:
    """The plan's line for a value, or for an edge written `value@reader`."""
    lines: dict[str, Slot] = {str(edge): slot for edge, slot in start.plan.edges.items()} | dict(start.plan.slots)
    return lines[name]


def float_name(start: Start, name: str) -> str:
    """The constant of the float graph that `name`, or the `bias` of `bias@layer`, is."""
    found = name if name in start.trained else name.rpartition("@")[0]
    if found not in start.trained:
        raise ModelError(f"`{name}` lives as codes, but the float model has no float constant of that name to train")
    return found


def value_of(name: str) -> str:
    """The value that is read on the grid `name`."""
    return name.rpartition("@")[0] or name
