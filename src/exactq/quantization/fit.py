"""Whether a plan fits a graph and a target's kernels: a plan may come from a user's hand, and none is carried out half.

What the planner makes always fits. Of what a user writes, each line is either carried out as it says, or refused here, before
anything is calibrated.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from exactq.calibration import observer_named
from exactq.errors import UsageError, unknown
from exactq.graphs.graph import Graph, constant, op_name
from exactq.numerics.formats import Format, Grid, spelled
from exactq.optimization.patterns import bounds, find_patterns
from exactq.plans.build import joined, operand_reason, real_values, weight_and_bias
from exactq.plans.plan import Dynamic, Edge, Fixed, FixedChannels, Float, Fused, Own, PerChannel, Plan, Product, Same, Slot
from exactq.plans.rules import Ability, Activates, Computes, Rule
from exactq.quantization.weights import WEIGHT_OBSERVERS


def layers(graph: Graph, plan: Plan) -> Iterator[fx.Node]:
    """The calls whose weight lives as codes."""
    for node in graph.calls:
        if _multiplies(node) and isinstance(plan.slots[graph.name(weight_and_bias(node)[0])], Own | Fixed | FixedChannels):
            yield node


def _multiplies(node: fx.Node) -> bool:
    """Whether the call is of a kind that has constant weights; its operands are then where `weight_and_bias` looks."""
    return op_name(node).removeprefix("aten.").startswith(("conv", "linear")) and operand_reason(node, _ANY) is None


_ANY = Computes("", "")


def plan_fits(graph: Graph, plan: Plan, ability: Ability) -> None:
    """Nothing, or `UsageError` for the first line that the graph has no value for, or the target's kernels cannot carry out."""
    names = [graph.name(n) for n in graph]
    for name in plan.slots:
        if name not in names:
            raise unknown("value in the plan", name, names)
    if missing := [n for n in names if n not in plan.slots]:
        raise UsageError(f"the plan has no line for `{missing[0]}` ({len(missing)} missing): make it anew with `exactq plan`")
    _Fit(graph, plan, ability).check()


class _Fit:
    """One plan on one graph, with what every check asks again."""

    def __init__(self, graph: Graph, plan: Plan, ability: Ability) -> None:
        self.graph, self.plan, self.ability = graph, plan, ability
        self.nodes = {graph.name(n): n for n in graph}
        self.reals = real_values(graph)
        self.layers = [n for n in graph.calls if _multiplies(n) and isinstance(self._rule(n), Computes)]
        self.weights = {graph.name(weight_and_bias(n)[0]) for n in self.layers}
        self.biases = {graph.name(b) for n in self.layers if (b := weight_and_bias(n)[1]) is not None}
        self.patterns = find_patterns(graph)
        self.joined = joined(graph, {n: rule for n in graph.calls if (rule := self._rule(n)) is not None})

    def check(self) -> None:
        for name, slot in self.plan.slots.items():
            if self.nodes[name].op == "get_attr":
                self._constant(name, slot)
            else:
                self._activation(name, slot)
        for edge, slot in self.plan.edges.items():
            self._edge(edge, slot)
        for node in self.layers:
            self._layer(node)
        for node in self.graph.calls:
            self._hidden_accumulator(node)
        for name, into in self.joined.items():
            self._hidden_addition(name, into)

    def _rule(self, node: fx.Node) -> Rule | None:
        rule = self.ability.operators.get(op_name(node)) if node.op == "call_function" else None
        return rule if rule is not None and rule.declines(node) is None else None

    def _constant(self, name: str, slot: Slot) -> None:
        match slot:
            case Float():
                return
            case Product() if name in self.biases:
                return
            case Own() | Fixed() | FixedChannels() if name in self.weights:
                _allowed(f"the weights `{name}`", slot.format, self.ability.weights, self.ability)
            case _:
                if name in self.biases and name not in self.weights:
                    raise UsageError(f"`{name}` is a bias: its line has to be `product`, or `float` in a float layer")
                can = "own, fixed or float" if name in self.weights else "float: no integer kernel reads it as its weight"
                raise UsageError(f"`{name}` is a constant; its line has to be {can}")
        if isinstance(slot, Fixed | FixedChannels):
            zeros = (slot.zero,) if isinstance(slot, Fixed) else slot.zeros
            if any(zeros) and not self.ability.weight_zeros:
                raise UsageError(f"`{name}`: weights live on grids whose zero is 0, not {next(z for z in zeros if z)}")
        if isinstance(slot, Fixed):
            return
        if isinstance(slot, FixedChannels):
            self._fixed_channels(name, slot)
            return
        if slot.observer not in WEIGHT_OBSERVERS:
            raise unknown(f"weight observer of `{name}`", slot.observer, WEIGHT_OBSERVERS)
        if not slot.symmetric:
            raise UsageError(f"`{name}`: weights live on symmetric grids, write `symmetric: true`")
        if isinstance(slot.per, PerChannel):
            self._axis(name, slot.per.axis)

    def _fixed_channels(self, name: str, slot: FixedChannels) -> None:
        self._axis(name, slot.axis)
        shape = tuple(constant(self.graph.module, self.nodes[name]).shape)
        if shape[slot.axis] != len(slot.scales):
            raise UsageError(f"`{name}` of shape {shape} needs {shape[slot.axis]} scales, not {len(slot.scales)}")

    def _axis(self, name: str, axis: int) -> None:
        """The kernels of the layers that read the weights `name` take a scale for each index of `axis`."""
        for node in self.layers:
            rule = self._rule(node)
            if self.graph.name(weight_and_bias(node)[0]) == name and isinstance(rule, Computes) and rule.axis != axis:
                what = f"`{name}`: {rule.kernel} takes a scale for each index of axis {rule.axis}"
                raise UsageError(f"{what}, the output channels, not of axis {axis}")

    def _activation(self, name: str, slot: Slot) -> None:
        match slot:
            case Own() | Fixed():
                self._codes(f"`{name}`", name, slot)
                users = self.nodes[name].users
                if self.nodes[name].op == "placeholder" and all(u.op == "output" for u in users):
                    raise UsageError(f"no operator reads the input `{name}`: its line has to be `float`")
            case Same(of):
                source = self.plan.source(name)
                if not isinstance(self.plan.slots[source], Own | Fixed) or self.nodes[source].op == "get_attr":
                    what = summary_of(self.plan.slots[source]) if self.nodes[source].op != "get_attr" else "a constant"
                    raise UsageError(
                        f"`{name}` is on the grid of `{of}`, but `{source}` is {what} and has none: "
                        f"make `{name}` float too, or give it a grid of its own"
                    )
                self._real(name)
            case FixedChannels():
                raise UsageError(f"`{name}` is an activation and has one scale per channel: kernels take one for the tensor")
            case Product():
                raise UsageError(f"`{name}` is no bias: only biases live on the grid of a product")
            case Dynamic():
                raise UsageError(
                    f"`{name}` is dynamic: a grid is made at run time for a layer that reads, so give the edge "
                    f"'{name} -> LAYER' this line, and make `{name}` float or give it a grid of its own"
                )
            case Fused(into):
                self._fused(name, into)

    def _codes(self, what: str, name: str, slot: Own | Fixed) -> None:
        self._real(name)
        _allowed(what, slot.format, (*self.ability.activations, *self.ability.narrow), self.ability)
        if isinstance(slot, Own):
            if isinstance(slot.per, PerChannel):
                raise UsageError(f"{what} is an activation and has one scale per channel: kernels take one for the tensor")
            try:
                observer_named(slot.observer)
            except UsageError as error:
                raise UsageError(f"{what}: {error}") from error

    def _real(self, name: str) -> None:
        if name not in self.reals:
            raise UsageError(f"`{name}` is not made of float32 reals, so it has no codes: its line has to be `float`")

    def _fused(self, name: str, into: str) -> None:
        if into not in {self.graph.name(u) for u in self.nodes[name].users if u.op != "output"}:
            raise UsageError(f"the plan fuses `{name}` into `{into}`, which does not read it")
        behind = self.nodes[into]
        if self.joined.get(name) == into:
            self._added(name, behind)
            return
        if (
            self.patterns.get(name) != into
            or not isinstance(self._rule(behind), Activates)
            or self._rule(self.nodes[name]) is None
        ):
            raise UsageError(
                f"the plan fuses `{name}` into `{into}`, for which {self.ability.target} has no kernel: only a layer or an "
                "addition and the relu or clamp that alone reads it are one; give it a grid of its own, or make it float"
            )
        slot = self.plan.slots[into]
        if not isinstance(slot, Own | Fixed):
            raise UsageError(
                f"the plan fuses `{name}` into `{into}`, which is {summary_of(slot)}: the kernel makes codes, so give `{into}` "
                f"a grid of its own or a fixed one, or make `{name}` float too"
            )
        if not _implies(slot, behind):
            raise UsageError(
                f"the plan fuses `{name}` into `{into}`, whose grid does not end at the bounds of `{into}`: the kernel would "
                f"not stop there; choose a grid whose lowest code is the lower bound, or give `{name}` a grid of its own"
            )

    def _added(self, name: str, behind: fx.Node) -> None:
        """A layer in the accumulator of the addition behind it: what is added to it has to be codes, and the sum too."""
        into = self.graph.name(behind)
        for other in behind.all_input_nodes:
            if self.graph.name(other) != name and not self._coded(self.graph.name(other), into):
                raise UsageError(
                    f"the plan fuses `{name}` into `{into}`, whose other operand `{self.graph.name(other)}` has no codes: give "
                    f"`{name}` a grid of its own, or make it float"
                )
        if not isinstance(slot := self.plan.slots[into], Own | Fixed | Fused):
            raise UsageError(
                f"the plan fuses `{name}` into `{into}`, which is {summary_of(slot)}: the kernel makes codes, so give `{into}` "
                f"a grid of its own or a fixed one, or make `{name}` float too"
            )

    def _edge(self, edge: Edge, slot: Slot) -> None:
        what = f"the edge {edge.value} -> {edge.user}"
        value, user = self.nodes[edge.value], self.nodes[edge.user]
        if value not in user.all_input_nodes:
            raise UsageError(f"{what}: `{edge.user}` does not read `{edge.value}`")
        if value.op == "get_attr":
            if edge.value not in self.biases or not isinstance(slot, Product | Float):
                raise UsageError(f"{what}: a constant has edges only as a bias, with `product` or `float`")
            return
        if isinstance(slot, Dynamic):
            self._dynamic(what, value, user, slot)
            return
        if not isinstance(slot, Own | Fixed):
            raise UsageError(f"{what} needs a grid of its own or a fixed one, not {summary_of(slot)}")
        if isinstance(self.plan.slots[edge.value], Fused):
            raise UsageError(f"{what}: `{edge.value}` is only in the accumulator, nobody can read it")
        # The model's output reads an input as it came, every other value decoded.
        readers = [u for u in value.users if u.op != "output" or value.op != "placeholder"]
        if self.plan.quantized(edge.value) and readers == [user]:
            # ORT merges two grids in a row into one (double_qdq_pairs_remover.cc): the first would not be kept.
            raise UsageError(f"{what}: `{edge.user}` alone reads `{edge.value}`, so give `{edge.value}` itself this grid")
        self._codes(what, edge.value, slot)

    def _dynamic(self, what: str, value: fx.Node, user: fx.Node, slot: Dynamic) -> None:
        """A grid made at run time, for a layer that has such a kernel, whose weight is codes and whose sum is in no other."""
        name, rule = self.graph.name(user), self.ability.dynamic.get(op_name(user))
        if rule is None:
            known = ", ".join(op.removeprefix("aten.") for op in self.ability.dynamic) or "no operator"
            raise UsageError(f"{what} is dynamic: {self.ability.target} makes a grid at run time for {known}, not `{name}`")
        reason = rule.declines(user) or operand_reason(user, rule)
        if reason is not None:
            raise UsageError(f"{what} is dynamic, but `{name}` cannot be: {reason}")
        _allowed(what, slot.format, self.ability.activations, self.ability)
        self._real(self.graph.name(value))
        weight = self.graph.name(weight_and_bias(user)[0])
        if not isinstance(coded := self.plan.slots[weight], Own | Fixed | FixedChannels):
            raise UsageError(f"{what} is dynamic, but `{weight}` is {summary_of(coded)}: give the weights a grid of their own")
        zeros = coded.zeros if isinstance(coded, FixedChannels) else (coded.zero,) if isinstance(coded, Fixed) else ()
        if any(zeros):
            raise UsageError(
                f"`{weight}`: weights of a dynamic layer live on grids whose zero is 0, not {next(filter(None, zeros))}"
            )
        if isinstance(self.plan.slots[self.graph.name(value)], Fused):
            raise UsageError(f"{what}: `{self.graph.name(value)}` is only in the accumulator, nobody can read it")
        if isinstance(self.plan.slots[name], Fused):
            raise UsageError(f"{what} is dynamic, so `{name}` is reals and in no accumulator: make it float or give it a grid")

    def _layer(self, node: fx.Node) -> None:
        """A bias is on the grid of its layer's products, or in a layer that has no such grid it is float."""
        name, (weight, bias) = self.graph.name(node), weight_and_bias(node)
        if bias is None:
            return
        x, w, b = (self.graph.name(n) for n in (node.all_input_nodes[0], weight, bias))
        slot = self.plan.read(b, name)
        coded_weight, coded_input = isinstance(self.plan.slots[w], Own | Fixed | FixedChannels), self._coded(x, name)
        fitting = f"{{product: [{x}, {w}], format: int32}}"
        if isinstance(slot, Product):
            if not coded_weight and Edge(b, name) not in self.plan.edges and self._another_layer_has(b, name):
                return  # it stays float here, its codes are another layer's
            if not (coded_weight and coded_input):
                why = f"`{w}` is float" if not coded_weight else f"`{x}` has no codes"
                raise UsageError(f"`{b}` is on the grid of the products of `{name}`, but {why}: make `{b}` float too")
            if slot.of != (x, w):
                line = f"the edge '{b} -> {name}'" if self._another_layer_has(b, name) else f"`{b}`"
                wrong = " and ".join(f"`{of}`" for of in slot.of)
                raise UsageError(f"`{name}` adds `{b}` to products of `{x}` and `{w}`, not of {wrong}: write {line}: {fitting}")
            if spelled(slot.format) != "int32":
                raise UsageError(f"`{b}` is in {spelled(slot.format)}: the accumulator it is added to is int32")
        elif (
            self.ability.bias is not None
            and not self.ability.rounds_bias
            and coded_weight
            and coded_input
            and self._codes_behind(node)
        ):
            raise UsageError(
                f"`{b}` is float, but the weight, the input and the output of `{name}` are codes: no kernel adds such a bias; "
                f"write {fitting}, or make `{w}` float too"
            )

    def _another_layer_has(self, bias: str, name: str) -> bool:
        return any(
            (b := weight_and_bias(n)[1]) is not None and self.graph.name(b) == bias and self.graph.name(n) != name
            for n in self.layers
        )

    def _coded(self, value: str, user: str) -> bool:
        """Whether `user` reads codes."""
        return isinstance(self.plan.read(value, user), Own | Fixed)

    def _codes_behind(self, node: fx.Node) -> bool:
        return self.plan.quantized(self.graph.name(node)) or isinstance(self.plan.slots[self.graph.name(node)], Fused)

    def _hidden_accumulator(self, behind: fx.Node) -> None:
        """A float value between an integer kernel's operands and a fusing activation: the runtime would make codes of it."""
        if not isinstance(self._rule(behind), Activates):
            return
        root, into = behind.all_input_nodes[0], self.graph.name(behind)
        name, slot = self.graph.name(root), self.plan.slots[into]
        if not isinstance(self.plan.slots[name], Float) or not isinstance(slot, Own | Fixed) or len(root.users) > 1:
            return
        rule = self._rule(root)
        if rule is None or not _implies(slot, behind) or operand_reason(root, rule) is not None:
            return
        operands = [n for n in root.all_input_nodes if n.op != "get_attr"]
        coded = all(self._coded(self.graph.name(n), name) for n in operands)
        if isinstance(rule, Computes):
            coded = coded and isinstance(
                self.plan.slots[self.graph.name(weight_and_bias(root)[0])], Own | Fixed | FixedChannels
            )
        if coded:
            raise UsageError(
                f"`{name}` is float between codes, and {self.ability.target} makes it and `{into}` in one integer kernel: "
                f"write {{fused: {into}}}, give it a grid of its own, or make `{into}` float"
            )

    def _hidden_addition(self, name: str, into: str) -> None:
        """A layer that is float between codes and an addition which its kernel does on the accumulator."""
        layer, slot = self.nodes[name], self.plan.slots[into]
        if not isinstance(self.plan.slots[name], Float) or not isinstance(slot, Own | Fixed | Fused):
            return
        others = [n for n in self.nodes[into].all_input_nodes if n is not layer]
        read = [(self.graph.name(layer.all_input_nodes[0]), name), *((self.graph.name(n), into) for n in others)]
        weight = self.plan.slots[self.graph.name(weight_and_bias(layer)[0])]
        if isinstance(weight, Own | Fixed) and all(self._coded(value, user) for value, user in read):
            raise UsageError(
                f"`{name}` is float between codes, and {self.ability.target} makes it and `{into}` in one integer kernel: "
                f"write {{fused: {into}}}, give it a grid of its own, or make `{into}` float"
            )


def _allowed(what: str, fmt: Format, allowed: tuple[Format, ...], ability: Ability) -> None:
    if fmt not in allowed:
        names = ", ".join(spelled(f) for f in allowed)
        raise UsageError(f"{what} cannot be in {spelled(fmt)}: {ability.target} has integer kernels for {names}")


def _implies(slot: Own | Fixed, activation: fx.Node) -> bool:
    """Whether the grid ends at the activation's bounds: one of its own range does, its zero on the lowest code.

    A format narrower than its storage ends behind the kernel, which so has no upper bound of its own.
    """
    lo, hi = bounds(activation) or (-torch.inf, torch.inf)
    if hi < torch.inf and slot.format.bits < torch.iinfo(slot.format.dtype).bits:
        return False
    if isinstance(slot, Own):
        return not slot.symmetric and lo == 0
    made = Grid(slot.format, torch.tensor(slot.scale), torch.tensor(slot.zero, dtype=torch.int32))
    return all(int(made.encode(torch.tensor(bound))) == end for bound, end in ((lo, slot.format.lo), (hi, slot.format.hi)))


def summary_of(slot: Slot) -> str:
    """A slot's kind in a word or two, for messages."""
    match slot:
        case Own():
            return "a grid of its own"
        case Fixed() | FixedChannels():
            return "a fixed grid"
        case Same(of):
            return f"on the grid of {of}"
        case Product():
            return "a product"
        case Dynamic():
            return "dynamic"
        case Fused(into):
            return f"in the accumulator of {into}"
        case Float():
            return "float"
