"""The graph as it is being built: a value is a tensor that is known now, or a node that will compute it.

A call of known tensors is computed at once, so chains that only work out a shape leave nothing behind; every call is first
walked on tensors without data, so that nothing large is made of a small file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from exactq.errors import ModelError
from exactq.graphs.graph import Graph, Input, attribute_path, op_name, root_of, unique
from exactq.sources import weights

aten = torch.ops.aten

Value = Tensor | fx.Node

CONSTANT = 2**24
"""How many elements a tensor may have that is computed while reading, unless what it is made of has as many."""

_OF_TWO_KINDS = (aten.index_select.default, aten.where.self)

COMPUTED = 2**28
"""How many elements a value may have that the model computes."""


@dataclass
class Draft:
    """Nodes in order, what each one's value looks like without its data, and the names of what was made.

    `reserved` are the names that the file gives; `result` is the name of what is being made now.
    """

    opset: int
    reserved: set[str]
    graph: fx.Graph = field(default_factory=fx.Graph)
    result: str = ""
    _looks: dict[fx.Node, Tensor] = field(default_factory=dict)
    _names: dict[fx.Node, str] = field(default_factory=dict)
    _unnamed: list[fx.Node] = field(default_factory=list)
    _wanted: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    _read: dict[int, fx.Node] = field(default_factory=dict)
    _tensors: dict[str, Tensor] = field(default_factory=dict)

    def look(self, value: Value) -> Tensor:
        """A value's sizes and dtype, as a tensor that may be without data."""
        return value if isinstance(value, Tensor) else self._looks[value]

    def shape(self, value: Value) -> tuple[int, ...]:
        """A value's sizes."""
        return tuple(self.look(value).shape)

    def place(self, name: str, look: Tensor) -> fx.Node:
        """An input of the graph."""
        plain = name.isascii() and name.isidentifier() and name not in dir(torch.nn.Module)
        node = self.graph.placeholder(name if plain else f"input_{len(self._looks)}")
        node.target = node.name  # no word of Python's own, which the code of a graph could not say
        self._looks[node], self._names[node] = look, name
        return node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of an operator: a tensor where all that it reads is known, a node otherwise."""
        operands = list(_values((*args, *kwargs.values())))
        looks = {id(v): self.look(v).to("meta") for v in operands}
        kinds = sorted({str(v.dtype).removeprefix("torch.") for v in looks.values()})
        if len(kinds) > 1 and target not in _OF_TWO_KINDS:
            raise ModelError(f"its operands are of {' and '.join(kinds)}, which it has to take alike")
        # A value is its elements, not their order in memory.
        run = aten.reshape.default if target is aten.view.default else target
        look = run(*_swapped(args, looks), **_swapped(kwargs, looks))
        known = all(isinstance(v, Tensor) for v in operands)
        limit = max([CONSTANT, *(v.numel() for v in looks.values())]) if known else COMPUTED
        if look.numel() > limit:
            raise ModelError(f"its result {list(look.shape)} has {look.numel():,} elements, more than {limit:,}")
        if known:
            return run(*args, **kwargs)
        if look.numel() == 0:
            raise ModelError(f"its result {list(look.shape)} has no element")
        nodes = {id(v): self._constant(v) for v in operands if isinstance(v, Tensor)}
        node = self.graph.call_function(target, _swapped(args, nodes), _swapped(kwargs, nodes))
        self._looks[node] = look
        self._unnamed.append(node)
        return node

    def like(self, tensor: Tensor, original: Tensor) -> Tensor:
        """`tensor`, under the name of what it is made of: the same weights in another order."""
        if id(original) in self._wanted:
            self._wanted[id(tensor)] = (self._wanted[id(original)][0], tensor)
        return tensor

    def name(self, value: Value, name: str) -> None:
        """Call a value by its name in the file; what only hands another value on leaves that one its name."""
        if isinstance(value, Tensor):
            self._wanted.setdefault(id(value), (name, value))
        else:
            self._names.setdefault(value, name)

    def name_the_rest(self) -> None:
        """Name what an operator of the file made on the way to its result: after that, and the operator of its own."""
        for node in self._unnamed:
            if node not in self._names:
                self._names[node] = self._free(f"{self.result}.{op_name(node).removeprefix('aten.')}")
        self._unnamed.clear()

    def _free(self, wanted: str) -> str:
        name = unique(wanted, self.reserved)
        self.reserved.add(name)
        return name

    def _constant(self, tensor: Tensor) -> fx.Node:
        """The node of a constant, made where it is first read; raises `ModelError` for values that are not finite."""
        if id(tensor) not in self._read:
            name, _ = self._wanted.setdefault(id(tensor), (self._free(f"{self.result}.constant"), tensor))
            if name in (taken := self._names.values()):
                name = self._free(unique(name, taken))
            weights.check_finite(name, tensor)
            path = attribute_path(name, self._tensors)
            self._tensors[path] = tensor.clone(memory_format=torch.contiguous_format)
            node = self.graph.create_node("get_attr", path)
            self._read[id(tensor)], self._names[node], self._looks[node] = node, name, tensor.to("meta")
        return self._read[id(tensor)]

    def freeze(self, outputs: Sequence[tuple[str, fx.Node]], inputs: Sequence[Input]) -> Graph:
        """The graph that returns `outputs`, each under its name unless it has another output's; what nothing reads is gone."""
        wanted = [name for name, _ in outputs]
        for name, node in outputs:
            if node.op == "call_function" and self._names[node] not in wanted:
                self._names[node] = name
        self.graph.output(tuple(node for _, node in outputs))
        self.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        used = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        module = fx.GraphModule(root_of({k: v for k, v in self._tensors.items() if k in used}), self.graph)
        names = {n.name: self._names[n] for n in self.graph.nodes if n.op != "output"}
        return Graph(module, names, tuple(inputs))


def _values(arguments: Any) -> Iterator[Value]:
    """The values among arguments, within lists too."""
    for argument in arguments:
        if isinstance(argument, Tensor | fx.Node):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _values(argument)


def _swapped(arguments: Any, others: Mapping[int, Any]) -> Any:
    """The same arguments with others in the place of some values."""
    match arguments:
        case Tensor() | fx.Node():
            return others.get(id(arguments), arguments)
        case list() | tuple():
            return type(arguments)(_swapped(a, others) for a in arguments)
        case dict():
            return {key: _swapped(value, others) for key, value in arguments.items()}
    return arguments
