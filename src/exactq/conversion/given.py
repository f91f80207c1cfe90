"""A float graph with marks and given weight grids -> the quantized model whose plan says these grids, and nothing else.

Codes live in uint8 on every target, so grids of signed codes are moved: real = s·(q − z) = s·((q + 128) − (z + 128)). Where the
model's own codes end earlier than their storage (`reduce_range`), kernels would not stop there: an explicit clamp does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from exactq.conversion.markers import DECODED, DYNAMIC, NAMED, ON_GRID
from exactq.errors import ModelError
from exactq.graphs.graph import Edit, Graph, op_name
from exactq.graphs.programs import is_compute
from exactq.numerics.formats import INT32, UINT8, Grid
from exactq.optimization.patterns import find_patterns
from exactq.optimization.pipeline import optimize
from exactq.plans.build import weight_and_bias
from exactq.plans.plan import Dynamic, Edge, Fixed, FixedChannels, Float, Fused, Plan, Product, Same, Slot
from exactq.plans.rules import Ability, Activates, Computes, Passes, Rule
from exactq.quantization.apply import apply
from exactq.quantized import Quantized
from exactq.targets.target import Target

aten = torch.ops.aten

RECIPE = "given"
"""What stands for the recipe in a plan whose grids are others'."""

_MOVES = "view flatten unsqueeze squeeze permute transpose slice select constant_pad_nd cat expand clone"
_BOUNDS = "relu clamp leaky_relu"
_POOLS = "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d"
_ADAPTIVE = "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean upsample_nearest2d"
KEEPS_THE_GRID = frozenset(f"aten.{op}" for op in f"{_MOVES} {_BOUNDS} {_POOLS} {_ADAPTIVE}".split())
"""What PyTorch does to a quantized tensor without being told a grid: the result has the grid of what was read."""

AVERAGES = frozenset(f"aten.{op}" for op in "avg_pool1d avg_pool2d avg_pool3d mean".split()) | {
    f"aten.adaptive_avg_pool{n}d" for n in (1, 2, 3)
}
"""Those among them that round."""

OWN_GRID = {"aten.sigmoid": (1 / 256, 0), "aten.tanh": (2 / 256, 128)}
"""What PyTorch does to a quantized tensor on a scale and zero of its own (native/quantized/cpu/qsigmoid.cpp, qtanh.cpp)."""


@dataclass(frozen=True, eq=False)
class WeightGrid:
    """The grid of a weight, and the axis along which it has a scale each; None for one scale."""

    grid: Grid
    axis: int | None


@dataclass(frozen=True, eq=False)
class Given:
    """The quantized model; `names` says under which value name each mark's codes live, and how far they were moved.

    `inputs` are the marks that encode an input of the model: mark -> the input's name.
    """

    quantized: Quantized
    names: Mapping[str, tuple[str, int]]
    inputs: Mapping[str, str]


def given(
    marked: Graph,
    weights: Mapping[str, WeightGrid],
    *,
    target: Target,
    isa: str,
    by: str,
    rounded_in_training: bool = True,
) -> Given:
    """The model of a marked graph. `by` says in a sentence's end who gave the grids.

    `rounded_in_training` False: what an average makes was not rounded by the model itself, which the notes then say.
    Raises `ModelError` where no value has a grid.
    """
    graph = optimize(marked).graph
    for name, value in graph.constants.items():
        if name in weights and not torch.equal(value, marked.constants[name]):
            raise ModelError(f"`{name}` is followed by an operator that would change its codes: quantize that one too")
    placing = _Placing(Edit(graph))
    placing.place()
    float_graph = placing.edit.freeze()
    ability = target.ability(isa)
    slots = _slots(float_graph, placing, weights, ability, by)
    edges = _edges(float_graph, placing, ability, by)
    if not edges and not any(isinstance(slot, Fixed) for slot in slots.values()):
        raise ModelError("no value of the model has a grid: nothing in it is quantized")
    plan = Plan(target.name, isa, RECIPE, slots, edges)
    applied = apply(float_graph, plan, {})
    notes = applied.notes if rounded_in_training else (*applied.notes, *placing.averages(), *_bias_notes(ability, slots))
    return Given(Quantized(float_graph, applied.graph, plan, notes), placing.names, placing.inputs)


@dataclass
class _Placing:
    """The marks of a graph made into grids of values: `grids` by value name, once `place` is done."""

    edit: Edit
    grids: dict[str, Grid] = field(default_factory=dict)
    names: dict[str, tuple[str, int]] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    passed: dict[str, str] = field(default_factory=dict)
    """Value -> the value whose grid it keeps."""
    dynamic: dict[str, bool] = field(default_factory=dict)
    """Layer that lays a grid over its input -> whether its range is reduced."""

    def place(self) -> None:
        named: set[str] = set()
        for node in self.edit:
            if node.op == "call_function" and node.target is NAMED:
                known: Any = node.args
                source, name = known
                self.edit.replace(node, source)
                if source.op == "call_function" and name in named:
                    self.edit.name(source, name)  # a layer's second call: the first keeps the name
                elif source.op == "call_function":
                    self._rename(source, name)
                named.add(name)
        at: dict[fx.Node, Grid] = {}
        coded: dict[fx.Node, fx.Node] = {}
        """A mark or a value that moves codes -> the value that holds them."""
        passes: dict[fx.Node, fx.Node] = {}
        for node in self.edit:
            if node.op != "call_function":
                continue
            if node.target is ON_GRID:
                source = self._again(node, coded) or self._marked(node, at)
                coded[node] = source
            elif node.target is not DECODED and not any(user.target is ON_GRID for user in node.users):
                read = [n for n in node.all_input_nodes if n in coded]
                if read and op_name(node) in KEEPS_THE_GRID:
                    at[node], coded[node], passes[node] = at[coded[read[0]]], node, coded[read[0]]
                elif read and op_name(node) in OWN_GRID:
                    scale, zero = OWN_GRID[op_name(node)]
                    at[node], coded[node] = _grid(scale, zero), node
        chosen = {user: bool(n.args[1]) for n in self.edit if n.target is DYNAMIC for user in n.users}
        for node in self.edit:
            if node.op == "call_function" and node.target in (ON_GRID, DECODED, DYNAMIC):
                self.edit.replace(node, coded.get(node, node.all_input_nodes[0]))
        self.dynamic = {self.edit.value(node): reduced for node, reduced in chosen.items()}
        self.grids = {self.edit.value(node): grid for node, grid in at.items()}
        self.passed = {self.edit.value(node): self.edit.value(source) for node, source in passes.items()}

    def _again(self, mark: fx.Node, coded: Mapping[fx.Node, fx.Node]) -> fx.Node | None:
        """The value that holds the codes of a mark right behind an equal one, as observers of an identity leave it."""
        read: Any = mark.args[0]
        if read.target is not ON_GRID or read.args[1:-1] != mark.args[1:-1]:
            return None
        held = coded[read]
        self.names[str(mark.args[-1])] = (self.edit.value(held), self.names[str(read.args[-1])][1])
        return held

    def _marked(self, mark: fx.Node, at: dict[fx.Node, Grid]) -> fx.Node:
        """The value that holds the codes of a mark, its grid noted in `at`."""
        given: Any = mark.args
        read, scale, zero, lo, hi, name = given
        shift = 128 if lo < 0 else 0
        lo, hi = lo + shift, hi + shift
        if lo < 0 or hi > UINT8.hi:
            raise ModelError(f"`{name}` has codes of {lo - shift}..{hi - shift}: no target here has activations beyond 8 bits")
        grid = _grid(scale, zero + shift)
        source = read
        while source.target in (ON_GRID, DECODED):
            source = source.all_input_nodes[0]
        others = [u for u in read.users if u.target is not ON_GRID]
        if source is not read or source in at and not at[source].same_as(grid) or others or source.op == "get_attr":
            with self.edit.graph.inserting_before(mark):
                source = self.edit.call(name, aten.clone.default, read)
        held = source
        if (lo, hi) != (UINT8.lo, UINT8.hi):
            ends = grid.decode(torch.tensor([lo, hi]))
            low, high = (None if end == full else float(ends[n]) for n, (end, full) in enumerate(((lo, 0), (hi, UINT8.hi))))
            with self.edit.graph.inserting_before(mark):
                held = self.edit.call(f"{name}.clamped", aten.clamp.default, source, low, high)
            if source.op == "call_function" and source.target is not aten.clone.default:
                at[source] = grid  # the kernel rounds to the whole of the grid, and what is clamped then are codes
        at[held] = grid
        if read.op == "placeholder":
            self.inputs[name] = self.edit.value(read)
        if held.op == "call_function" and self.inputs.get(name) != name:
            self._rename(held, name)
        self.names[name] = (self.edit.value(held), shift)
        return held

    def _rename(self, node: fx.Node, wanted: str) -> None:
        """`node` gets the name `wanted`; whoever had it moves aside."""
        before = next((n for n in self.edit if self.edit.value(n) == wanted and n is not node), None)
        if before is not None and before.op == "call_function" and self.edit.value(before) not in self._given():
            self.edit.name(before, f"{wanted}.{op_name(before).split('.')[-1]}")
        self.edit.name(node, wanted)

    def _given(self) -> set[str]:
        return {name for name, _ in self.names.values()}

    def averages(self) -> list[str]:
        """A note for each average whose result only the deployed kernel rounds."""
        names = {self.edit.value(n): op_name(n) for n in self.edit if n.op == "call_function"}
        return [
            f"`{name}` was not rounded in training: the kernel rounds its averages on the grid of `{source}`"
            for name, source in self.passed.items()
            if names.get(name) in AVERAGES
        ]


def _grid(scale: float, zero: int) -> Grid:
    return Grid(UINT8, torch.tensor(scale, dtype=torch.float32), torch.tensor(zero, dtype=torch.int32))


def _slots(graph: Graph, placing: _Placing, weights: Mapping[str, WeightGrid], ability: Ability, by: str) -> dict[str, Slot]:
    """The plan's lines."""
    patterns = find_patterns(graph)
    slots: dict[str, Slot] = {}

    def rule(node: fx.Node) -> Rule | None:
        found = ability.operators.get(op_name(node)) if node.op == "call_function" else None
        return found if found is not None and found.declines(node) is None else None

    for node in graph:
        name = graph.name(node)
        if name in placing.grids:
            slots[name] = _activation(name, placing, rule(node), by)
        elif (into := patterns.get(name)) in placing.grids and isinstance(rule(graph.node(into)), Activates):
            slots[name] = Fused(into, f"`{into}` alone reads it: rounded once, behind the activation")
        elif node.op == "get_attr":
            slots[name] = Float("a constant that no integer kernel reads")
        else:
            slots[name] = Float("the model keeps it in float")
    for node in graph.calls:
        if is_compute(node) and isinstance(rule(node), Computes):
            weight, bias = weight_and_bias(node)
            x, w = graph.name(node.all_input_nodes[0]), graph.name(weight)
            if w in weights:
                _refuse_zeros(w, weights[w].grid, ability)
                slots[w] = _weight(weights[w], by)
                if bias is not None and graph.name(node) in placing.dynamic:
                    slots[graph.name(bias)] = Float("its layer makes reals, and adds it to them")
                elif bias is not None:
                    made = graph.name(node)
                    whole = x in placing.grids and (made in placing.grids or patterns.get(made) in placing.grids)
                    slots[graph.name(bias)] = _bias(x, w, ability, coded=whole)
    return slots


def _edges(graph: Graph, placing: _Placing, ability: Ability, by: str) -> dict[Edge, Slot]:
    """The plan's edges: the inputs of layers that lay a grid over them at run time."""
    edges: dict[Edge, Slot] = {}
    for name, reduced in placing.dynamic.items():
        node = graph.node(name)
        rule = ability.dynamic.get(op_name(node))
        if rule is None:
            raise ModelError(f"`{name}` quantizes its input at run time, for which {ability.target} has no layer")
        edge = Edge(graph.name(node.all_input_nodes[0]), name)
        edges[edge] = Dynamic(UINT8, f"at run time, asked for {by}", reduced)
    return edges


def _activation(name: str, placing: _Placing, rule: Rule | None, by: str) -> Slot:
    grid, source = placing.grids[name], placing.passed.get(name)
    if source is not None and isinstance(rule, Passes):
        return Same(source, f"{rule.kernel} {rule.how}")
    why = f"on the grid of `{source}`, which it keeps" if source is not None else f"given {by}"
    return Fixed(grid.format, float(grid.scale), int(grid.zero), why)


def _weight(given: WeightGrid, by: str) -> Slot:
    grid = given.grid
    if given.axis is None:
        return Fixed(grid.format, float(grid.scale), int(grid.zero), f"given {by}")
    scales, zeros = tuple(grid.scale.flatten().tolist()), tuple(grid.zero.flatten().tolist())
    return FixedChannels(grid.format, scales, zeros, given.axis, f"given {by}")


def _bias_notes(ability: Ability, slots: Mapping[str, Slot]) -> list[str]:
    """A note where kernels round what training added as a real."""
    if ability.bias is None or not any(isinstance(slot, Fixed | FixedChannels) for slot in slots.values()):
        return []
    what = f"{ability.target} rounds each bias to a code of {ability.bias.name}, training did not"
    return [f"{what}: a value close to the middle of two codes may become the other; fbgemm, x86 and onednn add the real"]


def _refuse_zeros(name: str, grid: Grid, ability: Ability) -> None:
    if bool(grid.zero.any()) and not ability.weight_zeros:
        zero = next(z for z in grid.zero.flatten().tolist() if z)
        raise ModelError(
            f"`{name}` is on a grid whose zero is {zero}, and the kernels of {ability.target} take weights whose zero is 0: "
            "choose the target fbgemm, x86 or qnnpack, or train without FusedMovingAvgObsFakeQuantize, which makes the grid of "
            "weights of one sign affine whatever its scheme says"
        )


def _bias(x: str, w: str, ability: Ability, *, coded: bool) -> Slot:
    if ability.bias is None:
        return Float(f"{ability.target} adds it to the accumulator as a real")
    if ability.rounds_bias:
        return Float(f"{ability.target} is handed the real and rounds it itself")
    if not coded:
        return Float("its layer reads or makes reals")
    return Product((x, w), INT32, "added to the accumulator, so it lives on the grid of the products")
