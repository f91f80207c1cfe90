"""Plans as tables: one row a value, or one row a layer."""

from __future__ import annotations

from exactq.graphs.graph import Graph, op_name
from exactq.plans.plan import Float, Own, PerChannel, Plan, Slot, summary


def plan_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The plan as rows: value, format, granularity, observer, reason."""
    return [(name, *summary(slot), slot.reason) for name, slot in plan.slots.items()]


def short_plan_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The plan as narrower rows: value; format, granularity and observer in one; reason."""
    return [(name, " ".join(word for word in words if word), reason) for name, *words, reason in plan_rows(plan)]


def layer_rows(graph: Graph, plan: Plan) -> list[tuple[str, ...]]:
    """The plan as one row an operator: its name, itself, its weights' format, and its output's, with the reason where float."""
    rows: list[tuple[str, ...]] = []
    for node in graph.calls:
        name = graph.name(node)
        read = [plan.slots[graph.name(n)] for n in node.all_input_nodes if n.op == "get_attr"]
        weights = "; ".join(_brief(slot) for slot in read if isinstance(slot, Own))
        rows.append((name, op_name(node).removeprefix("aten."), weights, _brief(plan.slots[name])))
    return rows


def _brief(slot: Slot) -> str:
    """A slot in a few words, with the reason where it is float."""
    match slot:
        case Own(fmt, observer, _, per):
            return f"{fmt.name}{' per channel' if isinstance(per, PerChannel) else ''}, {observer}"
        case Float(reason):
            return f"float: {reason}"
    return " ".join(word for word in summary(slot) if word)
