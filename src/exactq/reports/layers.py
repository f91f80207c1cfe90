"""A run's graphs as the list of what the runtime does: each layer with its plan, grid, weights, error and verification."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from exactq.graphs.graph import Graph, arguments, constant, op_name
from exactq.graphs.programs import is_compute, multiply_accumulates, shapes
from exactq.graphs.qdq import CODES, REAL, read_dequantize, read_quantize
from exactq.kernels.pairs import saturating_pairs
from exactq.numerics.formats import Grid
from exactq.numerics.measures import sqnr_db
from exactq.plans.plan import Float, Fused, Plan, summary
from exactq.plans.rules import Computes
from exactq.quantized import Quantized
from exactq.reports.facts import Channel, Compared, GridFacts, Histogram, LayerFacts, PlanLine, WeightFacts
from exactq.reports.folder import LayerNoise, Run
from exactq.reports.histograms import histogram


def layers(run: Run) -> tuple[LayerFacts, ...]:
    """The layers in the order of the graph; values that live only in another's accumulator belong to that one's layer."""
    quantized = run.quantized
    graph, plan = quantized.float_graph, quantized.plan
    groups = _groups(graph, plan)
    place = {value: index for index, nodes in enumerate(groups) for value in map(graph.name, nodes)}
    shape_of = shapes(graph)
    macs = multiply_accumulates(graph, shape_of)
    total = sum(macs.values())
    steps = quantized.program().steps
    kernels = {name: step.kernel for step in steps for name in step.covers or (step.name,)}
    integer = {name for step in steps for name in step.covers}
    weights = _weights(quantized)
    grids = quantized.grids
    noise, before, activations = _measured(run)
    compared = {t.name: t for t in run.verify.tensors} if run.verify else {}
    silent = _reasons(run.verify.unverified if run.verify else (), place)
    found = []
    for index, nodes in enumerate(groups):
        names = [graph.name(node) for node in nodes]
        last = names[-1]
        count = sum(macs.get(name, 0) for name in names)
        reads = {place[graph.name(r)] for n in nodes for r in n.all_input_nodes if graph.name(r) in place} - {index}
        calls = [n for n in nodes if n.op == "call_function"]
        slot = plan.slots.get(last, Float("the plan has no line for it"))
        found.append(
            LayerFacts(
                name=last,
                values=tuple(names),
                operators=tuple(op_name(n).removeprefix("aten.") for n in calls),
                kind="input" if not calls else "integer" if integer.intersection(names) else "float",
                kernel=next((kernels[name] for name in names if name in kernels), None) if calls else None,
                reads=tuple(sorted(reads)),
                output=bool(set(names) & set(graph.outputs)),
                shape=shape_of.get(last),
                slot=" ".join(text for text in summary(slot) if text),
                reason=slot.reason,
                grid=_grid(grids[last]) if last in grids else None,
                macs=count,
                share=count / total if total else 0.0,
                sqnr_db=noise.get(last),
                before_training_db=before.get(last),
                weight=next((weights[name] for name in names if name in weights), None),
                activation=activations.get(last),
                compared=Compared(**vars(compared[last])) if last in compared else None,
                unverified=silent.get(last),
            )
        )
    return tuple(found)


def plan_lines(plan: Plan) -> tuple[PlanLine, ...]:
    """The plan, a line a value, then its edges as `value -> user`."""
    rows = [*plan.slots.items(), *((f"{e.value} -> {e.user}", slot) for e, slot in plan.edges.items())]
    return tuple(PlanLine(name, *summary(slot), slot.reason) for name, slot in rows)


def _groups(graph: Graph, plan: Plan) -> list[list[fx.Node]]:
    """The nodes that one kernel does together, each group in order and placed where its last value is made."""

    def end(name: str) -> str:
        seen = {name}
        while isinstance(slot := plan.slots.get(name), Fused) and slot.into not in seen:
            name = slot.into
            seen.add(name)
        return name

    groups: dict[str, list[fx.Node]] = {}
    for node in graph:
        if node.op != "get_attr":
            groups.setdefault(end(graph.name(node)), []).append(node)
    order = {graph.name(node): position for position, node in enumerate(graph)}
    return sorted(groups.values(), key=lambda nodes: order[graph.name(nodes[-1])])


def _measured(run: Run) -> tuple[dict[str, float], dict[str, float], Mapping[str, Histogram]]:
    if run.metrics is None:
        return {}, {}, {}

    def table(rows: Sequence[LayerNoise]) -> dict[str, float]:
        return {row.name: row.sqnr_db for row in rows if row.sqnr_db is not None}

    return table(run.metrics.layers), table(run.metrics.ptq_layers), run.metrics.activations


def _reasons(unverified: Sequence[str], names: Mapping[str, int]) -> dict[str, str]:
    """Value -> why it was not compared, from lines of the form `value: reason`."""
    found = {}
    for line in unverified:
        name, _, reason = line.partition(": ")
        if name in names:
            found[name] = reason
    return found


def _grid(grid: Grid) -> GridFacts:
    fmt, scale, zero = grid.format, grid.scale.double(), grid.zero.double()
    ends = torch.stack([(fmt.lo - zero) * scale, (fmt.hi - zero) * scale])
    return GridFacts(
        f"{fmt.name} {fmt.lo}..{fmt.hi}",
        fmt.lo,
        fmt.hi,
        scale.numel(),
        (float(grid.scale.min()), float(grid.scale.max())),
        (int(grid.zero.min()), int(grid.zero.max())),
        (float(ends.min()), float(ends.max())),
    )


@dataclass(frozen=True, eq=False)
class _Stored:
    """A weight's codes in the Q/DQ graph, and their grid."""

    codes: Tensor
    grid: Grid


def _stored(graph: Graph) -> dict[str, _Stored]:
    """Value name -> codes, of constants behind a quantize node, and of codes that a file gave."""
    found = {}
    for node in graph.calls:
        q, d = read_quantize(graph, node), read_dequantize(graph, node)
        if q is not None and q.source.op == "get_attr":
            values = constant(graph.module, q.source)
            found[graph.name(node).removesuffix(CODES)] = _Stored(q.grid.encode(values), q.grid)
        elif d is not None and d.source.op == "get_attr":
            found[graph.name(node).removesuffix(REAL)] = _Stored(constant(graph.module, d.source), d.grid)
    return found


def _weights(quantized: Quantized) -> dict[str, WeightFacts]:
    """Layer name -> its weight, for the layers whose weight is codes."""
    graph, target = quantized.float_graph, quantized.target
    stored = _stored(quantized.graph)
    abilities = [target.ability(isa) for isa in target.isas]
    narrow = [ability for ability in abilities if ability.saturates]
    found = {}
    for node in graph.calls:
        if not is_compute(node):
            continue
        source: fx.Node = arguments(node)["weight"]
        name = graph.name(source)
        if source.op != "get_attr" or name not in stored:
            continue
        real, kept = constant(graph.module, source), stored[name]
        rules = [ability.operators.get(op_name(node)) for ability in narrow]
        hit = any(isinstance(rule, Computes) and not rule.exempt(node, real.shape) for rule in rules)
        pairs = int(saturating_pairs(kept.codes).sum()) if hit and kept.grid.format.signed else None
        found[graph.name(node)] = _weight(name, real, kept, pairs)
    return found


def _weight(name: str, real: Tensor, kept: _Stored, pairs: int | None) -> WeightFacts:
    decoded = kept.grid.decode(kept.codes)
    overall = sqnr_db(real, decoded)
    axis = next((a for a, n in enumerate(kept.grid.scale.shape) if n == real.shape[a] > 1), None)
    weakest = None
    if axis is not None:
        parts = zip(real.unbind(axis), decoded.unbind(axis), strict=True)
        finite = [(db, i) for i, db in enumerate(sqnr_db(r, d) for r, d in parts) if math.isfinite(db)]
        weakest = Channel(min(finite)[1], min(finite)[0]) if finite else None
    return WeightFacts(
        name=name,
        shape=tuple(real.shape),
        grid=_grid(kept.grid),
        sqnr_db=overall if math.isfinite(overall) else None,
        exact=overall == math.inf,
        weakest=weakest,
        histogram=histogram(real, kept.grid),
        used=int(kept.codes.unique().numel()),
        saturating=pairs,
    )
