"""Plan + what was seen -> grids, codes and the Q/DQ graph: the only place where quantization touches graphs.

Weights are stored as code × scale behind a quantize node, so that every exporter finds the same codes again; biases are stored
as int32 codes behind a dequantize node, for float32 cannot hold every int32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from exactq.calibration import observer_named
from exactq.errors import DataError, ModelError, UsageError
from exactq.graphs.graph import Edit, Graph, arguments
from exactq.graphs.qdq import REAL, dequantize, quantize, quantize_dynamically
from exactq.numerics.formats import Grid
from exactq.optimization.patterns import bounds
from exactq.plans.build import weight_and_bias
from exactq.plans.plan import Dynamic, Edge, Fixed, FixedChannels, Own, PerChannel, Plan, Product, Slot
from exactq.quantization.bias import bias_codes, guard, product
from exactq.quantization.fit import layers
from exactq.quantization.ranges import grid
from exactq.quantization.weights import weight_grid


@dataclass(frozen=True)
class Applied:
    """The Q/DQ graph, the grid of every value that lives as codes, and what had to be done beyond the plan, in sentences.

    A grid on which one reader alone reads a value is called `value@reader`.
    """

    graph: Graph
    grids: Mapping[str, Grid]
    notes: tuple[str, ...]


def activation_grids(
    plan: Plan,
    constants: Mapping[str, Tensor],
    states: Mapping[str, Any],
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Grid]:
    """The grid of every value and edge but weights and biases: from its observer's state, as given, or another value's.

    A value that was 0 throughout says nothing about its range; where `limits` knows its ends, as behind a clamp, they are it:
    a scale that reaches beyond a clamp would keep the clamp, and the kernel in front of it, in float.
    """
    limits = {} if limits is None else limits
    lines = {name: slot for name, slot in plan.slots.items() if name not in constants}
    edges = {str(edge): slot for edge, slot in plan.edges.items() if edge.value not in constants}
    own = {name: made for name, slot in lines.items() if (made := _activation_grid(name, slot, states, limits)) is not None}
    shared = {name: own[source] for name in plan.slots if (source := plan.source(name)) in own}
    return shared | {
        name: made for name, slot in edges.items() if (made := _activation_grid(name, slot, states, limits)) is not None
    }


def _activation_grid(
    name: str, slot: Slot, states: Mapping[str, Any], limits: Mapping[str, tuple[float, float]]
) -> Grid | None:
    if isinstance(slot, Fixed):
        return _given(slot)
    if not isinstance(slot, Own):
        return None
    if name not in states:
        raise ModelError(f"`{name}` was not calibrated: the plan gives it a grid of its own, but no batch was seen for it")
    try:
        lo, hi = observer_named(slot.observer).range(states[name], slot.format, slot.symmetric)
        if lo == hi == 0 and name in limits:
            lo, hi = (end if math.isfinite(end) else 0.0 for end in limits[name])
        return grid(lo, hi, slot.format, symmetric=slot.symmetric)
    except DataError as error:
        raise DataError(f"calibration, value `{name}`: {error}") from error


def _given(slot: Fixed) -> Grid:
    return Grid(slot.format, torch.tensor(slot.scale), torch.tensor(slot.zero, dtype=torch.int32))


@dataclass(frozen=True)
class _Layer:
    """A call with coded weights: what it reads, by name; the bias only where it is added to the products as codes."""

    node: fx.Node
    x: str
    weight: str
    bias: str | None


def apply(graph: Graph, plan: Plan, states: Mapping[str, Any], *, given: Mapping[str, Grid] | None = None) -> Applied:
    """The float graph on the plan's grids; `states` is what `calibrate` returned for this very graph and plan.

    A weight in `given` lives on that grid, whatever the plan's observer would say. The plan has to fit the graph
    (`quantization.fit.plan_fits`). Raises `ModelError` for weights that have no grid, and `UsageError` for a given grid on
    which the accumulator could overflow.
    """
    notes: list[str] = []
    edit = Edit(graph)
    nodes = {edit.value(n): n for n in edit}
    limits = {graph.name(n): ends for n in graph.calls if (ends := bounds(n)) is not None}
    grids = activation_grids(plan, graph.constants, states, limits)
    activations = list(grids)
    found = [_layer(graph, plan, node, nodes) for node in layers(graph, plan)]
    for weight in dict.fromkeys(layer.weight for layer in found):
        readers = [layer for layer in found if layer.weight == weight]
        _weight(edit, nodes, plan, weight, readers, (given or {}).get(weight), grids, notes)
    for bias in dict.fromkeys(layer.bias for layer in found if layer.bias is not None):
        _bias(edit, nodes[bias], plan, [layer for layer in found if layer.bias == bias], grids)
    for name in activations:
        if name in nodes:
            _activation(edit, nodes[name], grids[name])
    for edge, slot in plan.edges.items():
        if str(edge) in activations or isinstance(slot, Dynamic):
            _edge(edit, nodes, edge, slot if isinstance(slot, Dynamic) else grids[str(edge)])
    return Applied(edit.freeze(), grids, tuple(notes))


def _layer(graph: Graph, plan: Plan, node: fx.Node, nodes: Mapping[str, fx.Node]) -> _Layer:
    name, (weight, bias) = graph.name(node), weight_and_bias(node)
    coded = bias is not None and isinstance(plan.read(graph.name(bias), name), Product)
    kept = graph.name(bias) if bias is not None and coded else None
    return _Layer(nodes[name], graph.name(node.all_input_nodes[0]), graph.name(weight), kept)


def _read(edit: Edit, layer: _Layer, grids: Mapping[str, Grid]) -> Grid:
    """The grid on which a layer reads its input."""
    edge = str(Edge(layer.x, edit.value(layer.node)))
    return grids[edge if edge in grids else layer.x]


def _weight(
    edit: Edit,
    nodes: Mapping[str, fx.Node],
    plan: Plan,
    name: str,
    readers: Sequence[_Layer],
    given: Grid | None,
    grids: dict[str, Grid],
    notes: list[str],
) -> None:
    node, slot = nodes[name], plan.slots[name]
    assert isinstance(slot, Own | Fixed | FixedChannels)
    value = edit.tensor(node)
    if not bool(value.any()):
        notes.append(f"`{name}` is all zero: every code is zero, on a grid whose scale does not matter")
    made = _weight_grid(name, value, slot, readers) if given is None else given
    for layer in readers:
        if layer.bias is None:
            continue
        held, raised = guard(edit.tensor(nodes[layer.bias]), _read(edit, layer, grids).scale, made)
        if not raised:
            continue
        if not isinstance(slot, Own):
            scale, least = made.scale.min().item(), held.scale.min().item()
            raise UsageError(
                f"`{name}`: with the scale {scale:g} the int32 code of `{layer.bias}` can overflow; the least is {least:g}"
            )
        made = _weight_grid(name, value, slot, readers, floor=held.scale) if given is None else held
        some = f"{', '.join(map(str, raised[:5]))}{' …' if len(raised) > 5 else ''}"
        notes.append(
            f"`{name}`: the scale of {len(raised)} channel(s) ({some}) "
            f"was raised so that the int32 code of `{layer.bias}` stays within 2**30 and the accumulator cannot overflow"
        )
    grids[name] = made
    edit.set_constant(node, made.decode(made.encode(value)))
    _read_decoded(edit, list(node.users), node, made, name, _axis(slot))


def _weight_grid(
    name: str, value: Tensor, slot: Own | Fixed | FixedChannels, readers: Sequence[_Layer], floor: Tensor | None = None
) -> Grid:
    if isinstance(slot, Fixed):
        return _given(slot)
    if isinstance(slot, FixedChannels):
        return channel_grid(slot, value.shape)
    # Pairs are certified for every layer that shares the weight: as depthwise only if all of them are.
    groups = min(int(arguments(layer.node).get("groups", 1)) for layer in readers)
    try:
        return weight_grid(value, slot.format, _axis(slot), observer=slot.observer, groups=groups, floor=floor)
    except ModelError as error:
        raise ModelError(f"`{name}`: {error}") from error


def channel_grid(slot: FixedChannels, shape: Sequence[int]) -> Grid:
    """The grid of weights of that shape; raises `UsageError` where they have another number of channels."""
    if slot.axis >= len(shape) or shape[slot.axis] != len(slot.scales):
        raise UsageError(f"{len(slot.scales)} scales along axis {slot.axis} do not fit weights of shape {tuple(shape)}")
    places = [-1 if n == slot.axis else 1 for n in range(len(shape))]
    scale = torch.tensor(slot.scales, dtype=torch.float32).reshape(places)
    return Grid(slot.format, scale, torch.tensor(slot.zeros, dtype=torch.int32).reshape(places))


def _axis(slot: Own | Fixed | FixedChannels) -> int | None:
    if isinstance(slot, FixedChannels):
        return slot.axis
    return slot.per.axis if isinstance(slot, Own) and isinstance(slot.per, PerChannel) else None


def _bias(edit: Edit, node: fx.Node, plan: Plan, readers: Sequence[_Layer], grids: dict[str, Grid]) -> None:
    """Codes of a bias for each grid on which a layer adds it; the bias itself stays where anything else reads it."""
    name, value = edit.value(node), edit.tensor(node)
    alone = set(node.users) == {layer.node for layer in readers}
    made: list[tuple[Grid, list[_Layer]]] = []
    for layer in readers:
        slot = plan.read(name, edit.value(layer.node))
        assert isinstance(slot, Product)
        scale = product(_read(edit, layer, grids).scale, grids[layer.weight].scale).flatten()
        scale = scale.expand(value.shape).contiguous() if scale.numel() == 1 else scale
        at = Grid(slot.format, scale, torch.zeros_like(scale, dtype=torch.int32))
        same = next((users for grid_, users in made if grid_.same_as(at)), None)
        if same is None:
            made.append((at, [layer]))
        else:
            same.append(layer)
    for at, users in made:
        first = min(layer.node for layer in users)
        own = alone and len(made) == 1
        base = name if own else str(Edge(name, edit.value(first)))
        with edit.graph.inserting_before(first):
            codes = node if own else edit.constant(base, bias_codes(value, at.scale))
            real = dequantize(edit, codes, at, base, axis=0)
        if own:
            edit.set_constant(node, bias_codes(value, at.scale))
        for layer in users:
            layer.node.replace_input_with(node, real)
        grids[base] = at


def _activation(edit: Edit, node: fx.Node, at: Grid) -> None:
    """Let the readers of a value read its codes, decoded. An input that the model hands on unchanged stays as it came."""
    name = edit.value(node)
    readers = [u for u in node.users if node.op != "placeholder" or u.op != "output"]
    _read_decoded(edit, readers, node, at, name, None)


def _read_decoded(edit: Edit, readers: Sequence[fx.Node], node: fx.Node, at: Grid, name: str, axis: int | None) -> None:
    # Inputs and constants stay in front: their codes come right before the first that reads them.
    with edit.after(node) if node.op == "call_function" else edit.graph.inserting_before(min(readers)):
        real = dequantize(edit, quantize(edit, node, at, name, axis), at, name, axis)
    for reader in readers:
        reader.replace_input_with(node, real)


def _edge(edit: Edit, nodes: Mapping[str, fx.Node], edge: Edge, at: Grid | Dynamic) -> None:
    user, name = nodes[edge.user], str(edge)
    read = next((n for n in edit if edit.value(n) == f"{edge.value}{REAL}" and n in user.all_input_nodes), nodes[edge.value])
    with edit.graph.inserting_before(user):
        if isinstance(at, Dynamic):
            made = quantize_dynamically(edit, read, at.format, name, reduce_range=at.reduce_range)
        else:
            made = dequantize(edit, quantize(edit, read, at, name), at, name)
        user.replace_input_with(read, made)
