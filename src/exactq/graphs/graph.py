"""The one graph: functional ATen operators in an `fx.GraphModule`, with a name for each value.

A value is an input, a constant (a weight, a bias, codes) or the result of one operator. Its name is given once, at capture,
and lives in the graph's own table; passes, plans, traces, exporters and reports all speak these names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from exactq.errors import ModelError, unknown


@dataclass(frozen=True)
class Input:
    """What the graph takes: a name, a shape, a dtype; `batch` says whether dimension 0 may be any size."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    batch: bool = True


@dataclass(frozen=True)
class Graph:
    """An `fx.GraphModule` of placeholders, constants, ATen calls and one output, and the table fx node name -> value name.

    The module takes the inputs in order and returns a tuple of tensors. Nothing else hangs on the nodes: `meta` is empty.
    """

    module: fx.GraphModule
    names: Mapping[str, str]
    inputs: tuple[Input, ...]

    def __post_init__(self) -> None:
        nodes = [n for n in self.module.graph.nodes if n.op != "output"]
        if missing := [n.name for n in nodes if n.name not in self.names]:
            raise ModelError(f"the graph's nodes {missing} have no value name")
        if len(set(self.names.values())) != len(self.names):
            raise ModelError("two values of the graph share a name")
        if (places := [self.names[n.name] for n in nodes if n.op == "placeholder"]) != [i.name for i in self.inputs]:
            raise ModelError(f"the graph takes {places}, but its inputs are {[i.name for i in self.inputs]}")

    def __iter__(self) -> Iterator[fx.Node]:
        """The nodes that make values, in order: inputs, constants and calls."""
        return (n for n in self.module.graph.nodes if n.op != "output")

    def name(self, node: fx.Node) -> str:
        """The value name of a node."""
        return self.names[node.name]

    def node(self, name: str) -> fx.Node:
        """The node that makes the value of that name; raises `UsageError` with a close name otherwise."""
        for node in self:
            if self.names[node.name] == name:
                return node
        raise unknown("value", name, self.names.values())

    @property
    def calls(self) -> tuple[fx.Node, ...]:
        """The operator calls, in order."""
        return tuple(n for n in self if n.op == "call_function")

    @property
    def constants(self) -> dict[str, Tensor]:
        """Value name -> tensor of each constant, in order of first use."""
        return {self.name(n): constant(self.module, n) for n in self if n.op == "get_attr"}

    @property
    def outputs(self) -> tuple[str, ...]:
        """The value names that the graph returns, in order."""
        (out,) = (n for n in self.module.graph.nodes if n.op == "output")
        return tuple(self.name(n) for n in _flat(out.args[0]))


def constant(module: torch.nn.Module, node: fx.Node) -> Tensor:
    """The tensor that a `get_attr` node reads."""
    owner: Any = module
    for part in str(node.target).split("."):
        owner = getattr(owner, part)
    return owner.detach() if isinstance(owner, Tensor) else owner


def _flat(args: Any) -> list[fx.Node]:
    return [args] if isinstance(args, fx.Node) else [n for a in args for n in _flat(a)]


def op_name(node: fx.Node) -> str:
    """The operator of a call without its overload: `aten.conv2d`, `quantized_decomposed.quantize_per_tensor`."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket)
    return str(getattr(target, "__name__", target))


def arguments(node: fx.Node) -> dict[str, Any]:
    """Argument name -> value of a call, in the order of its schema, defaults filled in.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> arguments(graph.call_function(torch.ops.aten.max_pool2d.default, (x, [2, 2])))
    {'self': x, 'kernel_size': [2, 2], 'stride': [], 'padding': [0, 0], 'dilation': [1, 1], 'ceil_mode': False}
    """
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return {str(position): value for position, value in enumerate(node.args)} | dict(node.kwargs)
    found: dict[str, Any] = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(node.args):
            found[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            found[argument.name] = argument.default_value
    return found


def feeds(node: fx.Node, target: fx.Node) -> bool:
    """Whether `target` is made from `node`, however far behind it, or is `node` itself."""
    seen, ahead = set(), [target]
    while ahead:
        reached = ahead.pop()
        if reached is node:
            return True
        if reached not in seen:
            seen.add(reached)
            ahead += reached.all_input_nodes
    return False


class Edit:
    """A working copy of a graph; `freeze()` gives the new graph. The one it was made from is never touched.

    New values get names by `name(node, "…")`; values that nothing reads any more disappear at `freeze`, their names with
    them.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        out = self.graph.graph_copy(graph.module.graph, copies)
        self.graph.output(out)
        self._names = {copies[n].name: graph.name(n) for n in graph}
        self._constants = {str(n.target): constant(graph.module, n) for n in graph if n.op == "get_attr"}
        self._inputs = graph.inputs

    def __iter__(self) -> Iterator[fx.Node]:
        """The nodes that make values, in order, as they stand now."""
        return iter([n for n in self.graph.nodes if n.op != "output"])

    def after(self, node: fx.Node) -> Any:
        """A context in which new nodes stand behind `node`, in the order in which they are made."""
        return self.graph.inserting_before(node.next)

    def value(self, node: fx.Node) -> str:
        """The value name of a node."""
        return self._names[node.name]

    def name(self, node: fx.Node, wanted: str) -> fx.Node:
        """`node`, now named `wanted`, or `wanted_1`, `wanted_2` … where another value has that name."""
        taken = {v for k, v in self._names.items() if k != node.name}
        self._names[node.name] = unique(wanted, taken)
        return node

    def tensor(self, node: fx.Node) -> Tensor:
        """The tensor of a constant."""
        return self._constants[str(node.target)]

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """A new constant at the current insertion point, named `name` (made unique)."""
        path = attribute_path(name, self._constants)
        self._constants[path] = value.detach()
        # fx wants to see the attribute; the module is made at the end, so the node is made by hand.
        node = self.graph.create_node("get_attr", path)
        self._names[node.name] = unique(name, set(self._names.values()))
        return node

    def set_constant(self, node: fx.Node, value: Tensor) -> None:
        """Give a constant another tensor."""
        self._constants[str(node.target)] = value.detach()

    def call(self, name: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new call at the current insertion point, named `name` (made unique)."""
        node = self.graph.call_function(target, args, kwargs)
        self._names[node.name] = unique(name, set(self._names.values()))
        return node

    def replace(self, node: fx.Node, new: fx.Node, *, keep_name: bool = False) -> None:
        """Let every reader of `node` read `new`, and erase `node`; `keep_name` hands its name on to `new`."""
        name = self._names[node.name]
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)
        del self._names[node.name]
        if keep_name:
            self._names[new.name] = name

    def freeze(self) -> Graph:
        """The new graph: dead values gone, linted, compiled."""
        self.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        used = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        module = fx.GraphModule(root_of({k: v for k, v in self._constants.items() if k in used}), self.graph)
        module.graph.lint()
        names = {n.name: self._names[n.name] for n in self.graph.nodes if n.op != "output"}
        return Graph(module, names, self._inputs)


def root_of(constants: Mapping[str, Tensor]) -> torch.nn.Module:
    """A module that holds each tensor as a buffer at its dotted path; paths that collide raise `ModelError`."""
    root = torch.nn.Module()
    for path, value in constants.items():
        *parents, leaf = path.split(".")
        owner = root
        for part in parents:
            if part not in owner._modules:
                if hasattr(owner, part):
                    raise ModelError(f"the constant '{path}' collides with another of the name '{part}'")
                owner.add_module(part, torch.nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        owner.register_buffer(leaf, value)
    return root


_RESERVED = frozenset(dir(fx.GraphModule(torch.nn.Module(), fx.Graph())))


def attribute_path(name: str, taken: Collection[str]) -> str:
    """Where a constant of that name lives in the module: its own name, or a flat one where that cannot be an attribute.

    >>> attribute_path("conv.weight", ["conv.bias"]), attribute_path("conv.weight", ["conv"]), attribute_path("half", [])
    ('conv.weight', 'conv_weight', 'constant_half')
    """
    parts = name.split(".")
    plain = all(part.isascii() and part.replace("_", "a").isalnum() and part not in _RESERVED for part in parts)
    # `a` and `a.b` cannot both be tensors.
    if plain and not any(t == name or t.startswith(f"{name}.") or name.startswith(f"{t}.") for t in taken):
        return name
    flat = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
    flat = flat if flat[:1].isalpha() and flat not in _RESERVED else f"constant_{flat}"
    return unique(flat, {t.split(".")[0] for t in taken})


def unique(wanted: str, taken: Collection[str]) -> str:
    """`wanted`, or with the first free number behind it.

    >>> unique("relu", {"relu", "relu_1"})
    'relu_2'
    """
    if wanted not in taken:
        return wanted
    number = 1
    while f"{wanted}_{number}" in taken:
        number += 1
    return f"{wanted}_{number}"


def describe(graph: Graph, shapes: Mapping[str, Sequence[int]] | None = None) -> list[tuple[str, str, str, str]]:
    """One row a call: value name, operator, what it reads, shape; for tables of a graph before and after a pass."""
    rows = []
    for node in graph.calls:
        reads = ", ".join(graph.name(n) for n in node.all_input_nodes)
        shape = "×".join(map(str, shapes[graph.name(node)])) if shapes and graph.name(node) in shapes else ""
        rows.append((graph.name(node), op_name(node), reads, shape))
    return rows
