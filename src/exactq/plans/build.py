"""Target rules + graph + recipe -> Plan: a slot and a reason for every value, float where nothing else is possible.

A value lives as codes if an integer kernel makes it or reads it. Kernels that compute make grids of their own, movement
keeps the grid it finds, an activation right behind a computing kernel leaves the accumulator to that kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import fx

from exactq.errors import UsageError
from exactq.graphs.graph import Graph, constant, op_name
from exactq.numerics.formats import INT32, Format, spelled
from exactq.plans.plan import Float, Fused, Own, PerChannel, Plan, Product, Same, Slot
from exactq.plans.recipes import Recipe
from exactq.plans.recipes import Rule as Wish
from exactq.plans.rules import Ability, Activates, Computes, Makes, Passes, Rule


def build(graph: Graph, ability: Ability, recipe: Recipe, patterns: Mapping[str, str]) -> Plan:
    """The plan of `recipe` for `graph` on the target described by `ability`; `patterns` maps root -> activation behind it.

    Raises `UsageError` for a format the target's kernels do not take and for a rule of the recipe that matches no layer.
    """
    if recipe.activations not in ability.activations:
        raise _format_error("activations", recipe.activations, ability.activations, ability)
    wishes = _wishes(graph, recipe)
    integer, refused = _integer_calls(graph, ability, wishes)
    wanted = _wanted(graph, integer)
    slots: dict[str, Slot] = {}
    for node in graph:
        name = graph.name(node)
        if node.op == "placeholder":
            slots[name] = _input_slot(node, node in wanted, recipe, graph)
        elif node.op == "call_function":
            for slot_name, slot in _call_slots(graph, node, integer.get(node), wanted, ability, recipe, wishes, patterns, refused):
                slots[slot_name] = slot
    for node in graph:
        slots.setdefault(graph.name(node), Float("a constant that no integer kernel reads"))
    return Plan(ability.target, ability.isa, recipe.name, slots)


def _format_error(what: str, asked: Format, allowed: tuple[Format, ...], ability: Ability) -> UsageError:
    names = ", ".join(spelled(f) for f in allowed)
    return UsageError(f"{ability.target} has no integer kernels for {what} in {spelled(asked)}; allowed: {names}")


def _wishes(graph: Graph, recipe: Recipe) -> dict[str, Wish]:
    """Layer name -> the recipe's rule for it; the last that fits wins, and a rule that fits nothing is an error."""
    layers = {graph.name(n): op_name(n) for n in graph.calls}
    found: dict[str, Wish] = {}
    for rule in recipe.rules:
        fits = [name for name, op in layers.items() if rule.match.fits(name, op)]
        if not fits:
            some = ", ".join(list(layers)[:8])
            raise UsageError(
                f"the rule for '{rule.match}' of recipe '{recipe.name}' matches nothing in this model; "
                f"its values are {some}{' …' if len(layers) > 8 else ''}: mend the pattern or drop the rule"
            )
        found |= dict.fromkeys(fits, rule)
    return found


def _integer_calls(
    graph: Graph, ability: Ability, wishes: Mapping[str, Wish]
) -> tuple[dict[fx.Node, Rule], dict[fx.Node, str]]:
    """The calls that run in integers with their rules, and for the others the reason why not."""
    integer: dict[fx.Node, Rule] = {}
    refused: dict[fx.Node, str] = {}
    for node in graph.calls:
        rule = ability.operators.get(op_name(node))
        wish = wishes.get(graph.name(node))
        if rule is None:
            refused[node] = f"{ability.target} has no integer kernel for `{op_name(node).removeprefix('aten.')}`"
        elif wish is not None and wish.stay_float:
            refused[node] = wish.reason
        elif reason := rule.declines(node) or _operand_reason(node, rule):
            refused[node] = reason
        else:
            integer[node] = rule
    # Movement and activations of values that nobody needs as codes stay float: they cost nothing and lose nothing there.
    changed = True
    while changed:
        changed = False
        made = {n for n, rule in integer.items() if isinstance(rule, Computes | Makes)}
        wanted = _wanted(graph, integer)
        for node, rule in list(integer.items()):
            if isinstance(rule, Passes | Activates):
                source = _first(node)
                if not (source in made or source in wanted or source in integer or node in wanted):
                    del integer[node]
                    refused[node] = "nothing before or after it is in integers"
                    changed = True
    return integer, refused


def _operand_reason(node: fx.Node, rule: Rule) -> str | None:
    """Why the operands of a call do not fit its integer kernel, or None where they do."""
    if isinstance(rule, Computes):
        if not (isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr"):
            return "its weight is computed, not a constant"
        bias = node.args[2] if len(node.args) > 2 else None
        if bias is not None and not (isinstance(bias, fx.Node) and bias.op == "get_attr"):
            return "its bias is computed, not a constant"
        return None
    if isinstance(rule, Makes):
        if any(n.op == "get_attr" for n in node.all_input_nodes):
            return "one operand is a constant tensor, for which there is no grid"
        if _tensor_count(node) != len(node.all_input_nodes) or not node.all_input_nodes:
            return "one operand is a number, for which there is no grid"
    return None


def _tensor_count(node: fx.Node) -> int:
    """How many operands the operator wants as tensors (two for add and mul, the list's length for cat, one otherwise)."""
    if op_name(node) in ("aten.add", "aten.sub", "aten.mul"):
        return 2 if node.args[0] is not node.args[1] else 1
    first = node.args[0]
    return len(set(first)) if isinstance(first, list | tuple) else 1


def _first(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _wanted(graph: Graph, integer: Mapping[fx.Node, Rule]) -> set[fx.Node]:
    """The values that some integer kernel reads as codes, directly or through movement."""
    wanted: set[fx.Node] = set()
    for node in reversed(graph.calls):
        match integer.get(node):
            case Computes():
                wanted.add(_first(node))
            case Makes():
                wanted.update(node.all_input_nodes)
            case Passes() | Activates() if node in wanted:
                wanted.add(_first(node))
    return wanted


def _input_slot(node: fx.Node, wanted: bool, recipe: Recipe, graph: Graph) -> Slot:
    spec = next(i for i in graph.inputs if i.name == graph.name(node))
    if spec.dtype != torch.float32:
        return Float(f"an input of {str(spec.dtype).removeprefix('torch.')}, not of reals")
    if not wanted:
        return Float("no integer kernel reads it")
    return Own(recipe.activations, recipe.activation_observer, "the model's input is quantized once, at the border")


def _call_slots(
    graph: Graph,
    node: fx.Node,
    rule: Rule | None,
    wanted: set[fx.Node],
    ability: Ability,
    recipe: Recipe,
    wishes: Mapping[str, Wish],
    patterns: Mapping[str, str],
    refused: Mapping[fx.Node, str],
) -> Iterator[tuple[str, Slot]]:
    name = graph.name(node)

    def own(reason: str) -> Own:
        return Own(recipe.activations, recipe.activation_observer, reason)

    match rule:
        case Computes(kernel, _, axis):
            yield from _weight_slots(graph, node, rule, axis, ability, recipe, wishes.get(name))
            yield name, _made(graph, node, patterns, ability, own(f"requantized by {kernel} from its int32 accumulator"))
        case Makes(kernel):
            yield name, _made(graph, node, patterns, ability, own(f"{kernel} makes codes on a grid of its own"))
        case Passes(kernel):
            of = graph.name(_first(node))
            yield name, Same(of, f"{kernel} moves codes and makes none")
        case Activates(kernel):
            root = graph.name(_first(node))
            if patterns.get(root) == name:
                reason = f"its lowest code is the bound of `{kernel}`, so the kernel of `{root}` needs no step for it"
            else:
                reason = f"`{kernel}` by itself: decoded, bounded and encoded again"
            yield name, own(reason)
        case None if node in wanted:
            yield name, own(f"made in float ({refused[node]}), quantized because an integer kernel reads it")
        case None:
            yield name, Float(refused[node])


def _made(graph: Graph, node: fx.Node, patterns: Mapping[str, str], ability: Ability, otherwise: Own) -> Slot:
    """The accumulator where an activation alone reads it and the target fuses the two, an own grid otherwise."""
    activation = patterns.get(graph.name(node))
    if activation is None:
        return otherwise
    behind = graph.node(activation)
    rule = ability.operators.get(op_name(behind))
    if not isinstance(rule, Activates) or rule.declines(behind) is not None:
        return otherwise
    return Fused(activation, f"`{activation}` alone reads it: rounded once, behind the activation")


def _weight_slots(
    graph: Graph, node: fx.Node, rule: Computes, axis: int, ability: Ability, recipe: Recipe, wish: Wish | None
) -> Iterator[tuple[str, Slot]]:
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    assert isinstance(weight, fx.Node)
    fmt = wish.weights if wish is not None and wish.weights is not None else recipe.weights
    if fmt not in ability.weights:
        raise _format_error(f"weights (of {graph.name(node)})", fmt, ability.weights, ability)
    # Codes of up to 64 cannot saturate a pair (255·(64 + 64) < 2¹⁵), nor can kernels that multiply one channel alone.
    can_saturate = fmt.hi > 64 and not rule.exempt(node, constant(graph.module, weight).shape)
    observer = recipe.weight_observer
    if observer == "pairsafe" and not can_saturate:
        observer = "minmax"
    reason = wish.reason if wish is not None else f"{rule.kernel} takes one scale per output channel at no cost"
    stored = ability.stored_bits.get(fmt.bits, fmt.bits)
    if stored != fmt.bits:
        reason += f"; stored in {stored} bits, {ability.target} has no {fmt.bits}-bit kernel for this operator"
    if ability.saturates and can_saturate:
        observer = "pairsafe"
        reason += f"; pair-safe, for on {ability.isa} the u8×s8 kernel adds pairs of products in a saturating int16"
    elif observer == "pairsafe":
        reason += "; pair-safe, so that kernels which saturate pairs of products in int16 give the same integers"
    name = graph.name(weight)
    yield name, Own(fmt, observer, reason, PerChannel(axis), symmetric=True)
    if isinstance(bias, fx.Node):
        product = (graph.name(_first(node)), name)
        yield graph.name(bias), Product(product, INT32, "added to the accumulator, so it lives on the grid of the products")
