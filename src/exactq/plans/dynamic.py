"""The plan of a dynamic recipe: layers that lay a grid over their reals when they see them, and everything else in float.

Such a layer's weights are codes; its input has a grid on that edge alone, which no calibration can know; its output is reals.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from exactq.errors import UsageError
from exactq.graphs.graph import Graph, op_name
from exactq.plans.build import Layers, format_error, layer_wishes, operand_reason, real_values
from exactq.plans.plan import Dynamic, Edge, Float, Plan, Slot
from exactq.plans.recipes import Recipe
from exactq.plans.rules import Ability, Computes


def build_dynamic(graph: Graph, ability: Ability, recipe: Recipe) -> Plan:
    """The plan of a recipe whose activations are quantized at run time, on a target that has such layers.

    Raises `UsageError` for a target without them, a format its kernels do not take, and a rule that matches no layer.
    """
    if not ability.dynamic:
        raise UsageError(
            f"{ability.target} has no layers that quantize their input at run time, as recipe '{recipe.name}' asks"
        )
    if recipe.activations not in ability.activations:
        raise format_error("activations", recipe.activations, ability.activations, ability)
    wishes, reals = layer_wishes(graph, recipe), real_values(graph)
    rules: dict[fx.Node, Computes] = {}
    why: dict[str, str] = {}
    for node in graph.calls:
        name, rule = graph.name(node), ability.dynamic.get(op_name(node))
        wish = wishes.get(name)
        if rule is None:
            why[name] = f"recipe '{recipe.name}' leaves everything float but layers that quantize their input at run time"
        elif wish is not None and wish.stay_float:
            why[name] = wish.reason
        elif unreal := [n for n in (*node.all_input_nodes, node) if graph.name(n) not in reals]:
            why[name] = f"`{graph.name(unreal[0])}` is not made of float32 reals"
        elif reason := rule.declines(node) or operand_reason(node, rule):
            why[name] = reason
        else:
            rules[node] = rule
            why[name] = f"{rule.kernel} gives reals"
    layers = Layers(graph, rules, replace(ability, bias=None), recipe, wishes)
    slots: dict[str, Slot] = {}
    for node in graph.calls:
        for constant, slot in layers.constants(node):
            slots.setdefault(constant, slot)
    for node in graph:
        name = graph.name(node)
        otherwise = "an input of the model" if node.op == "placeholder" else "a constant that no integer kernel reads"
        slots.setdefault(name, Float(why.get(name, otherwise)))
    in_order = {graph.name(node): slots[graph.name(node)] for node in graph}
    edges = {
        Edge(graph.name(node.all_input_nodes[0]), graph.name(node)): Dynamic(
            recipe.activations, f"{rule.kernel} lays the grid over each batch when it sees it"
        )
        for node, rule in rules.items()
    }
    return Plan(ability.target, ability.isa, recipe.name, in_order, edges)
