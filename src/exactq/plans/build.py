"""Target rules + graph + recipe -> Plan: a slot and a reason for every value, float where nothing else is possible.

A value lives as codes if an integer kernel makes it or reads it. Kernels that compute make grids of their own, movement
keeps the grid it finds, an activation right behind a computing kernel leaves the accumulator to that kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import fx

from exactq.errors import UsageError
from exactq.graphs.graph import Graph, arguments, constant, feeds, op_name
from exactq.graphs.programs import fake_values, is_compute, shapes
from exactq.numerics.formats import Format, spelled
from exactq.optimization.patterns import bounds
from exactq.plans.plan import Edge, Float, Fused, Own, PerChannel, PerTensor, Plan, Product, Same, Slot
from exactq.plans.recipes import Recipe
from exactq.plans.recipes import Rule as Wish
from exactq.plans.rules import Ability, Activates, Computes, Makes, Passes, Rule


def build(graph: Graph, ability: Ability, recipe: Recipe, patterns: Mapping[str, str]) -> Plan:
    """The plan of `recipe` for `graph` on the target described by `ability`; `patterns` maps root -> activation behind it.

    Raises `UsageError` for a format the target's kernels do not take and for a rule of the recipe that matches no layer.
    """
    if recipe.activations not in ability.activations:
        raise format_error("activations", recipe.activations, ability.activations, ability)
    multipliable = (*ability.activations, *ability.narrow)
    if recipe.multiplied is not None and recipe.multiplied not in multipliable:
        raise format_error("activations that layers multiply with", recipe.multiplied, multipliable, ability)
    wishes = layer_wishes(graph, recipe)
    reals = real_values(graph)
    integer, refused = _integer_calls(graph, ability, wishes, reals)
    wanted, multiplied = _wanted(graph, integer), _multiplied(graph, integer)
    layers = Layers(graph, {n: rule for n, rule in integer.items() if isinstance(rule, Computes)}, ability, recipe, wishes)
    together = joined(graph, integer)
    slots: dict[str, Slot] = {}
    for node in graph:
        name = graph.name(node)
        if node.op == "placeholder":
            slots[name] = _input_slot(name, recipe, wanted=node in wanted, dtype=_dtype(graph, name))
        elif node.op == "call_function":
            for constant_name, slot in layers.constants(node):
                slots.setdefault(constant_name, slot)
            fmt = recipe.multiplied if recipe.multiplied is not None and node in multiplied else recipe.activations
            slots[name] = _call_slot(graph, node, integer, wanted, ability, recipe, fmt, patterns, refused)
            if name in together:
                slots[name] = Fused(
                    together[name], f"`{together[name]}` alone reads it, and its kernel adds to the accumulator"
                )
    for node in graph:
        slots.setdefault(graph.name(node), Float("a constant that no integer kernel reads"))
    _refuse_lost_wishes(graph, ability, wishes, wanted, slots)
    edges = {edge: slot for edge, slot in layers.bias_edges() if slots[edge.value] != slot}
    return Plan(ability.target, ability.isa, recipe.name, slots, edges)


def _refuse_lost_wishes(
    graph: Graph, ability: Ability, wishes: Mapping[str, Wish], wanted: set[fx.Node], slots: Mapping[str, Slot]
) -> None:
    """Nothing, or `UsageError` for an operator without weights that shall stay float with codes before and behind it.

    Runtimes fuse such a one with its neighbours; the wish would be lost silently.
    """
    for node in graph.calls:
        name, wish = graph.name(node), wishes.get(graph.name(node))
        fused = isinstance(ability.operators.get(op_name(node)), Makes) and node in wanted
        if wish is not None and wish.stay_float and fused:
            floats = [graph.name(n) for n in node.all_input_nodes if isinstance(slots[graph.name(n)], Float)]
            if not floats:
                raise UsageError(
                    f"`{name}` cannot stay float: what it reads and what reads it is in integers, and {ability.target} fuses "
                    "it with them; keep the layer behind it float too, or drop the rule"
                )


def real_values(graph: Graph) -> set[str]:
    """The names of the float32 values, which are all that codes can stand for."""
    return {name for name, value in fake_values(graph).items() if value.dtype == torch.float32}


def _dtype(graph: Graph, name: str) -> torch.dtype:
    return next(i.dtype for i in graph.inputs if i.name == name)


def format_error(what: str, asked: Format, allowed: tuple[Format, ...], ability: Ability) -> UsageError:
    """The error of a recipe that asks for a format which the target's kernels do not take."""
    names = ", ".join(spelled(f) for f in allowed)
    return UsageError(f"{ability.target} has no integer kernels for {what} in {spelled(asked)}; allowed: {names}")


def layer_wishes(graph: Graph, recipe: Recipe) -> dict[str, Wish]:
    """Layer name -> the recipe's rule for it; the last that fits wins, and a rule that fits nothing is an error.

    A rule about weights fits layers that have some.
    """
    found: dict[str, Wish] = {}
    for rule in recipe.rules:
        layers = {graph.name(n): op_name(n) for n in graph.calls if rule.weights is None or is_compute(n)}
        fits = [name for name, op in layers.items() if rule.match.fits(name, op)]
        if not fits:
            some = ", ".join(f"{name} ({op.removeprefix('aten.')})" for name, op in list(layers.items())[:8])
            what = "its values" if rule.weights is None else "its layers with weights"
            raise UsageError(
                f"the rule for '{rule.match}' of recipe '{recipe.name}' matches nothing in this model; "
                f"{what} are {some or 'none'}{' …' if len(layers) > 8 else ''}: mend the pattern or drop the rule"
            )
        found |= dict.fromkeys(fits, rule)
    return found


def _integer_calls(
    graph: Graph, ability: Ability, wishes: Mapping[str, Wish], reals: set[str]
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
        elif unreal := [n for n in (*node.all_input_nodes, node) if graph.name(n) not in reals]:
            refused[node] = f"`{graph.name(unreal[0])}` is not made of float32 reals"
        elif reason := rule.declines(node) or operand_reason(node, rule):
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
                if source in made or source in wanted or source in integer:
                    continue
                # Movement may carry the codes that are made for what follows; a bound in front of them is exact in float.
                if isinstance(rule, Activates) or node not in wanted:
                    del integer[node]
                    refused[node] = (
                        "what it reads is made in float" if node in wanted else "nothing before or after it is in integers"
                    )
                    changed = True
    return integer, refused


def operand_reason(node: fx.Node, rule: Rule) -> str | None:
    """Why the operands of a call do not fit its integer kernel, or None where they do."""
    if isinstance(rule, Computes):
        if not (isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr"):
            return "its weight is computed, not a constant"
        if _first(node).op == "get_attr":
            return "its input is a constant"
        bias = arguments(node).get("bias")
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
    """How many operands the operator wants as tensors: two for add, mul and matmul, the list's length for cat, or one."""
    if op_name(node) in ("aten.add", "aten.sub", "aten.mul", "aten.matmul"):
        return 2 if node.args[0] is not node.args[1] else 1
    first = node.args[0]
    return len(set(first)) if isinstance(first, list | tuple) else 1


def joined(graph: Graph, rules: Mapping[fx.Node, Rule]) -> dict[str, str]:
    """Layer name -> name of the addition behind it, for each that the layer's kernel does on its accumulator (`Makes.joins`).

    The addition alone reads the layer, and the other operand has its shape. The kernel writes the sum over the other operand's
    codes, so whatever else reads those comes before the layer.
    """
    found: dict[str, str] = {}
    shape_of: dict[str, tuple[int, ...]] = {}
    for node, rule in rules.items():
        if not isinstance(rule, Makes) or not rule.joins or len(node.all_input_nodes) != 2:
            continue
        shape_of = shape_of or shapes(graph, batch=2)
        for layer in sorted(node.all_input_nodes, reverse=True):
            (other,) = (n for n in node.all_input_nodes if n is not layer)
            if (
                op_name(layer) in rule.joins
                and isinstance(rules.get(layer), Computes)
                and [*layer.users] == [node]
                and other is not layer.args[0]
                and all(feeds(reader, layer) for reader in other.users if reader is not node)
                and shape_of[graph.name(layer)] == shape_of[graph.name(other)]
            ):
                found[graph.name(layer)] = graph.name(node)
                break
    return found


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
            case Passes() if node in wanted:
                wanted.add(_first(node))
    return wanted


def _multiplied(graph: Graph, integer: Mapping[fx.Node, Rule]) -> set[fx.Node]:
    """The values that layers multiply with as codes, directly or through movement, and that nothing bounds from above.

    Where a clamp is part of a kernel, that kernel's codes end where the stored format does.
    """
    found: set[fx.Node] = set()
    for node in reversed(graph.calls):
        match integer.get(node):
            case Computes():
                found.add(_first(node))
            case Passes() if node in found:
                found.add(_first(node))
    return {node for node in found if not ((ends := bounds(node)) is not None and isfinite(ends[1]))}


def _input_slot(name: str, recipe: Recipe, *, wanted: bool, dtype: torch.dtype) -> Slot:
    if dtype != torch.float32:
        return Float(f"an input of {str(dtype).removeprefix('torch.')}, not of float32 reals")
    if not wanted:
        return Float("no integer kernel reads it")
    return Own(recipe.activations, recipe.activation_observer, "the model's input is quantized once, at the border")


def _call_slot(
    graph: Graph,
    node: fx.Node,
    integer: Mapping[fx.Node, Rule],
    wanted: set[fx.Node],
    ability: Ability,
    recipe: Recipe,
    fmt: Format,
    patterns: Mapping[str, str],
    refused: Mapping[fx.Node, str],
) -> Slot:
    name = graph.name(node)

    def own(reason: str) -> Own:
        if fmt != recipe.activations:
            stored = f"stored in {ability.stored_bits.get(fmt.bits, fmt.bits)} bits"
            reason += f"; {fmt.bits} bits, for layers multiply with it: {stored}, bounded behind the kernel"
        return Own(fmt, recipe.activation_observer, reason)

    match integer.get(node):
        case Computes(kernel):
            return _made(graph, node, patterns, integer, own(f"requantized by {kernel} from its int32 accumulator"))
        case Makes(kernel):
            return _made(graph, node, patterns, integer, own(f"{kernel} makes codes on a grid of its own"))
        case Passes(kernel, how=how):
            return Same(graph.name(_first(node)), f"{kernel} {how}")
        case Activates(kernel):
            root = graph.name(_first(node))
            if patterns.get(root) == name and _first(node) in integer:
                return own(f"its lowest code is the bound of `{kernel}`, so the kernel of `{root}` needs no step for it")
            return own(f"`{kernel}` by itself: decoded, bounded and encoded again")
        case None if node in wanted:
            return own(f"made in float ({refused[node]}), quantized because an integer kernel reads it")
        case None:
            return Float(refused[node])


def _made(graph: Graph, node: fx.Node, patterns: Mapping[str, str], integer: Mapping[fx.Node, Rule], otherwise: Own) -> Slot:
    """The accumulator where an activation alone reads it and the target fuses the two, an own grid otherwise."""
    activation = patterns.get(graph.name(node))
    if activation is None or not isinstance(integer.get(graph.node(activation)), Activates):
        return otherwise
    return Fused(activation, f"`{activation}` alone reads it: rounded once, behind the activation")


@dataclass(frozen=True)
class Layers:
    """The calls that multiply with weights in integers, and what follows for their constants, which layers may share."""

    graph: Graph
    rules: Mapping[fx.Node, Computes]
    ability: Ability
    recipe: Recipe
    wishes: Mapping[str, Wish]

    def constants(self, node: fx.Node) -> Iterator[tuple[str, Slot]]:
        """The slots of weight and bias of a layer; nothing for any other call."""
        if node not in self.rules:
            return
        weight, bias = weight_and_bias(node)
        yield self.graph.name(weight), self._weight(weight)
        if bias is not None:
            yield self.graph.name(bias), self._bias(node)

    def bias_edges(self) -> Iterator[tuple[Edge, Slot]]:
        """For each layer with a bias, the grid of its own products."""
        for node in self.rules:
            if (bias := weight_and_bias(node)[1]) is not None and self.ability.bias is not None:
                yield Edge(self.graph.name(bias), self.graph.name(node)), self._bias(node)

    def _bias(self, node: fx.Node) -> Slot:
        if self.ability.bias is None:
            return Float(f"{self.ability.target} adds it to the accumulator as a real")
        product = (self.graph.name(_first(node)), self.graph.name(weight_and_bias(node)[0]))
        return Product(product, self.ability.bias, "added to the accumulator, so it lives on the grid of the products")

    def _weight(self, weight: fx.Node) -> Slot:
        graph, ability = self.graph, self.ability
        readers = {n: rule for n, rule in self.rules.items() if weight_and_bias(n)[0] is weight}
        rule, names = next(iter(readers.values())), [graph.name(n) for n in readers]
        fmt, wish = self._wished(graph.name(weight), names)
        if fmt not in ability.weights:
            raise format_error(f"weights (of {names[0]})", fmt, ability.weights, ability)
        # Codes of up to 64 cannot saturate a pair (255·(64 + 64) < 2¹⁵), nor can kernels that multiply one channel alone.
        shape = constant(graph.module, weight).shape
        can_saturate = fmt.hi > 64 and not all(r.exempt(n, shape) for n, r in readers.items())
        observer = self.recipe.weight_observer
        if observer == "pairsafe" and not can_saturate:
            observer = "minmax"
        reason = wish.reason if wish is not None else f"{rule.kernel} takes one scale per output channel at no cost"
        stored = ability.stored_bits.get(fmt.bits, fmt.bits)
        if stored != fmt.bits:
            reason += f"; stored in {stored} bits, {ability.target} has no {fmt.bits}-bit kernel for this operator"
        always = fmt.hi > 64 and any(r.always(n, shape) for n, r in readers.items())
        if ability.saturates and can_saturate or always:
            observer = ability.pairs
            reason += f"; pair-safe, for on {ability.isa} the u8×s8 kernel adds pairs of products in a saturating int16"
        elif observer == "pairsafe":
            observer = ability.pairs
            reason += "; pair-safe, so that kernels which saturate pairs of products in int16 give the same integers"
        if len(names) > 1:
            reason += f"; shared by {', '.join(names)}"
        if others := [graph.name(u) for u in weight.users if u not in readers]:
            reason += f"; {', '.join(others)} reads it decoded"
        one_axis = len({r.axis for r in readers.values()}) == 1
        return Own(fmt, observer, reason, PerChannel(rule.axis) if one_axis else PerTensor(), symmetric=True)

    def _wished(self, weight: str, names: list[str]) -> tuple[Format, Wish | None]:
        """The format for a weight and the rule that says so; layers that share it have to agree."""
        found = {name: self.wishes.get(name) for name in names}
        formats = {n: self.recipe.weights if w is None or w.weights is None else w.weights for n, w in found.items()}
        if len(set(formats.values())) > 1:
            asked = ", ".join(f"{name} {spelled(fmt)}" for name, fmt in formats.items())
            raise UsageError(
                f"recipe '{self.recipe.name}' asks for two formats of `{weight}`, which these layers share: {asked}"
            )
        return formats[names[0]], next((w for w in found.values() if w is not None), None)


def weight_and_bias(node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The constants of a call that an integer kernel computes."""
    weight, bias = node.args[1], arguments(node).get("bias")
    assert isinstance(weight, fx.Node)
    return weight, bias if isinstance(bias, fx.Node) else None
