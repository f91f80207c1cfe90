"""Plan + what was seen -> grids, codes and the Q/DQ graph: the only place where quantization touches graphs.

Weights are stored as code × scale behind a quantize node, so that every exporter finds the same codes again; biases are stored
as int32 codes behind a dequantize node, for float32 cannot hold every int32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from exactq.calibration import observer_named
from exactq.errors import ModelError
from exactq.graphs.graph import Edit, Graph, op_name
from exactq.graphs.qdq import dequantize, quantize
from exactq.numerics.formats import Grid
from exactq.plans.plan import Edge, Fixed, Fused, Own, PerChannel, Plan, Product, Slot
from exactq.quantization.bias import bias_codes, guard, product
from exactq.quantization.ranges import grid
from exactq.quantization.weights import weight_grid


@dataclass(frozen=True)
class Applied:
    """The Q/DQ graph, the grid of every value that lives as codes, and what had to be done beyond the plan, in sentences."""

    graph: Graph
    grids: Mapping[str, Grid]
    notes: tuple[str, ...]


def activation_grids(plan: Plan, constants: Mapping[str, Tensor], states: Mapping[str, Any]) -> dict[str, Grid]:
    """The grid of every value but weights and biases: from its observer's state, as given, or another value's."""
    grids: dict[str, Grid] = {}
    for name, slot in plan.slots.items():
        if name not in constants and (made := _activation_grid(name, slot, states)) is not None:
            grids[name] = made
    return {name: grids[source] for name in plan.slots if (source := plan.source(name)) in grids}


def _activation_grid(name: str, slot: Slot, states: Mapping[str, Any]) -> Grid | None:
    if isinstance(slot, Fixed):
        return Grid(slot.format, torch.tensor(slot.scale), torch.tensor(slot.zero, dtype=torch.int32))
    if not isinstance(slot, Own):
        return None
    if name not in states:
        raise ModelError(f"`{name}` was not calibrated: the plan gives it a grid of its own, but no batch was seen for it")
    lo, hi = observer_named(slot.observer).range(states[name], slot.format, slot.symmetric)
    return grid(lo, hi, slot.format, symmetric=slot.symmetric)


def apply(graph: Graph, plan: Plan, states: Mapping[str, Any]) -> Applied:
    """The float graph on the plan's grids; `states` is what `calibrate` returned for this very graph and plan.

    Raises `UsageError` for a plan that names values the graph has not, or leaves some out.
    """
    plan_fits(graph, plan)
    constants = graph.constants
    grids = activation_grids(plan, constants, states)
    notes: list[str] = []
    edit = Edit(graph)
    nodes = {edit.value(n): n for n in edit}
    weights = {name for name, slot in plan.slots.items() if isinstance(slot, Own) and name in constants}
    biases = {s.of[1]: (name, s) for name, s in plan.slots.items() if isinstance(s, Product)}
    for name in weights:
        slot = plan.slots[name]
        assert isinstance(slot, Own)
        _weight(edit, nodes, name, slot, biases.get(name), grids, notes)
    for name in list(grids):
        if name not in constants:
            _activation(edit, nodes[name], grids[name])
    for edge, slot in plan.edges.items():
        _edge(edit, nodes, edge, slot, states, grids)
    return Applied(edit.freeze(), grids, tuple(notes))


def plan_fits(graph: Graph, plan: Plan) -> None:
    """Nothing, or `UsageError` where plan and graph do not speak of the same values."""
    from exactq.errors import UsageError, unknown

    names = [graph.name(n) for n in graph]
    for name in plan.slots:
        if name not in names:
            raise unknown("value in the plan", name, names)
    if missing := [n for n in names if n not in plan.slots]:
        raise UsageError(f"the plan has no line for `{missing[0]}` ({len(missing)} missing): make it anew with `exactq plan`")
    constants = graph.constants
    for name, slot in plan.slots.items():
        if isinstance(slot, Fused) and slot.into not in {graph.name(u) for u in graph.node(name).users}:
            raise UsageError(f"the plan fuses `{name}` into `{slot.into}`, which does not read it")
        if isinstance(slot, Own) and isinstance(slot.per, PerChannel) and name not in constants:
            raise UsageError(f"the plan wants one scale per channel for the activation `{name}`: kernels take one for the tensor")
        if isinstance(slot, Own) and name not in constants and slot.symmetric and not slot.format.signed:
            raise UsageError(f"the plan wants a symmetric grid for `{name}` in {slot.format.name}, which has no negative codes")


def _weight(
    edit: Edit,
    nodes: Mapping[str, fx.Node],
    name: str,
    slot: Own,
    bias: tuple[str, Product] | None,
    grids: dict[str, Grid],
    notes: list[str],
) -> None:
    node = nodes[name]
    users = list(node.users)
    value = edit.tensor(node)
    axis = slot.per.axis if isinstance(slot.per, PerChannel) else None
    groups = _groups(users[0])
    if not bool(value.any()):
        notes.append(f"`{name}` is all zero: every code is zero, on a grid whose scale does not matter")
    made = weight_grid(value, slot.format, axis, observer=slot.observer, groups=groups)
    if bias is not None:
        bias_name, of = bias
        x_grid = grids[of.of[0]]
        made, raised = guard(edit.tensor(nodes[bias_name]), x_grid.scale, made)
        if raised:
            made = weight_grid(value, slot.format, axis, observer=slot.observer, groups=groups, floor=made.scale)
            notes.append(
                f"`{name}`: the scale of {len(raised)} channel(s) ({', '.join(map(str, raised[:5]))}{' …' if len(raised) > 5 else ''}) "
                f"was raised so that the int32 code of `{bias_name}` stays within 2**30 and the accumulator cannot overflow"
            )
        _bias(edit, nodes[bias_name], bias_name, of, x_grid, made, grids)
    grids[name] = made
    edit.set_constant(node, made.decode(made.encode(value)))
    with edit.graph.inserting_before(users[0]):
        real = dequantize(edit, quantize(edit, node, made, name, axis), made, name, axis)
    for user in users:
        user.replace_input_with(node, real)


def _bias(
    edit: Edit, node: fx.Node, name: str, slot: Product, x_grid: Grid, w_grid: Grid, grids: dict[str, Grid]
) -> None:
    value = edit.tensor(node)
    scale = product(x_grid.scale, w_grid.scale).flatten()
    scale = scale.expand(value.shape).contiguous() if scale.numel() == 1 else scale
    made = Grid(slot.format, scale, torch.zeros_like(scale, dtype=torch.int32))
    edit.set_constant(node, bias_codes(value, scale))
    grids[name] = made
    users = list(node.users)
    with edit.graph.inserting_before(users[0]):
        real = dequantize(edit, node, made, name, axis=0)
    for user in users:
        user.replace_input_with(node, real)


def _activation(edit: Edit, node: fx.Node, at: Grid) -> None:
    name = edit.value(node)
    users = list(node.users)
    with edit.graph.inserting_before(users[0]) if node.op == "placeholder" else edit.after(node):
        real = dequantize(edit, quantize(edit, node, at, name), at, name)
    for user in users:
        user.replace_input_with(node, real)


def _edge(
    edit: Edit, nodes: Mapping[str, fx.Node], edge: Edge, slot: Slot, states: Mapping[str, Any], grids: dict[str, Grid]
) -> None:
    made = _activation_grid(edge.value, slot, states)
    if made is None:
        raise ModelError(f"the edge {edge.value} -> {edge.user} needs a grid of its own or a fixed one, not {slot}")
    user = nodes[edge.user]
    read = next(n for n in edit if edit.value(n) == f"{edge.value}/real")
    if read not in user.all_input_nodes:
        raise ModelError(f"the plan has an edge {edge.value} -> {edge.user}, but `{edge.user}` does not read `{edge.value}`")
    name = f"{edge.value}@{edge.user}"
    with edit.graph.inserting_before(user):
        codes = quantize(edit, read, made, name)
        user.replace_input_with(read, dequantize(edit, codes, made, name))
    grids[name] = made


def _groups(node: fx.Node) -> int:
    if not op_name(node).startswith("aten.conv"):
        return 1
    index = 8 if "transpose" in op_name(node) else 6
    return int(node.args[index] if len(node.args) > index else node.kwargs.get("groups", 1))  # type: ignore[arg-type]
