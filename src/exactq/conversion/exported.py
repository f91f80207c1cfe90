"""Graphs of PT2E quantization: fake quantization, or Q/DQ pairs, made into marks and decoded weights, on a copy.

A layer and the batch normalization behind it are one in QAT: y = conv(x, fq(W·s))/s, normalized, where s = γ/√(v + ε); so
y = conv(x, fq(W·s)) + (B − μ)·s + β.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from exactq.conversion.fakequant import Used, fakes, observes
from exactq.conversion.given import WeightGrid
from exactq.conversion.markers import DECODED, ON_GRID
from exactq.conversion.prepared import coded
from exactq.conversion.standins import Place
from exactq.errors import ModelError, UsageError
from exactq.graphs.graph import arguments, op_name, unique
from exactq.graphs.qdq import DEQUANTIZE, QUANTIZE
from exactq.numerics.formats import INT8, Format, Grid

aten: Any = torch.ops.aten

_COMPUTE = ("conv1d", "conv2d", "conv3d", "linear")
_DYNAMIC = "choose_qparams"

Ask = Callable[[nn.Module, str, Tensor | None], Used]
"""The grid of a fake quantization or observer, by its value's name, for a weight if there is one."""


def is_exported(module: nn.Module) -> bool:
    """Whether the module is a graph of ATen operators, as `torch.export` makes it."""
    return isinstance(module, fx.GraphModule) and any(
        isinstance(n.target, torch._ops.OpOverload) and n.target.namespace == "aten" for n in module.graph.nodes
    )


class Rewriting:
    """One graph with its marks: `module` to trace, `weights` by constant, `spots` node -> value, the grids `found` by value.

    `free` says whether the graph takes any batch.
    """

    def __init__(self, model: fx.GraphModule, ask: Ask) -> None:
        self.ask, self.original = ask, dict(model.named_modules(remove_duplicate=False))
        self.found: dict[str, Used] = {}
        self.weights: dict[str, WeightGrid] = {}
        self.spots: dict[str, str] = {}
        places = [n.meta.get("val") for n in model.graph.nodes if n.op == "placeholder"]
        self.free = not any(isinstance(x, Tensor) and x.ndim and isinstance(x.shape[0], int) for x in places)
        own = copy.deepcopy(model)
        self.root, self.graph = own, own.graph
        self.names = _names(self.graph)
        for node in list(self.graph.nodes):
            self._drop(node)
        for node in list(self.graph.nodes):
            self._encoded(node)
        for node in list(self.graph.nodes):
            self._decoded(node)
        for node in list(self.graph.nodes):
            if node.target is aten.batch_norm.default:
                self._fold(node)
        self.graph.eliminate_dead_code()
        self.graph.set_codegen(fx.graph.CodeGen())
        self.module = fx.GraphModule(own, self.graph).eval()

    def _drop(self, node: fx.Node) -> None:
        """Guards, and counters that training moves."""
        if node.op == "call_module" and str(node.target) == "_guards_fn" or node.target is aten.add_.Tensor and not node.users:
            self.graph.erase_node(node)
        elif _DYNAMIC in str(node.target):
            raise ModelError(f"`{node.name}` chooses a grid for each input: dynamic quantization is not read")

    def _encoded(self, node: fx.Node) -> None:
        """A fake quantization, an observer or a quantize node: weights decoded, activations marked."""
        module = self.original.get(str(node.target)) if node.op == "call_module" else None
        if module is not None and (fakes(module) or observes(module)):
            (source,) = node.args
            assert isinstance(source, fx.Node)
            if _constant(source):
                name, value = self._layer(node), self._value(source)
                found = self.found[f"{name}.weight"] = self.ask(module, f"{name}.weight", value)
                self._weight(node, name, *coded(value, found, name))
                return
            name = self.names[source]
            found = self.found[name] = self.ask(module, name, None)
            if found.axis is not None:
                raise ModelError(f"the activation `{name}` has a scale for each channel: kernels take one for the tensor")
            self._mark(node, source, Place(float(found.scale), int(found.zero), found.lo, found.hi, name))
        elif node.target in QUANTIZE and not _constant(node):
            given: Any = node.args
            read, scale, zero, lo, hi, _ = given
            self._mark(node, read, Place(scale, zero, lo, hi, self.names[read]))

    def _mark(self, node: fx.Node, source: Any, place: Place) -> None:
        with self.graph.inserting_after(node):
            mark = self.graph.call_function(ON_GRID, (source, place.scale, place.zero, place.lo, place.hi, place.name))
        self.spots[node.name] = place.name
        if node.target in QUANTIZE:
            node.replace_all_uses_with(mark)
        else:
            # What is not observed in between stays real: codes do not pass through it.
            with self.graph.inserting_after(mark):
                real = self.graph.call_function(DECODED, (mark,))
            node.replace_all_uses_with(real)
        self.graph.erase_node(node)

    def _decoded(self, node: fx.Node) -> None:
        """A dequantize node: of codes that are constant, or behind a mark."""
        if node.target not in DEQUANTIZE:
            return
        if not _constant(node):
            with self.graph.inserting_after(node):
                real = self.graph.call_function(DECODED, (node.args[0],))
            node.replace_all_uses_with(real)
            self.graph.erase_node(node)
            return
        name = self._layer(node)
        values: list[Any] = [self._value(a) if isinstance(a, fx.Node) else a for a in node.args]
        codes = values[0]
        if codes.dtype != torch.int8:
            raise ModelError(f"`{name}` has constant codes of {codes.dtype}: only int8 weights are read")
        by_channel = "per_channel" in str(node.target)
        axis = int(values[3]) if by_channel else None
        shape = [-1 if n == axis else 1 for n in range(codes.ndim)] if by_channel else []
        scale = torch.as_tensor(values[1], dtype=torch.float32).reshape(shape)
        zero = torch.as_tensor(values[2]).to(torch.int32).reshape(shape)
        lo, hi = (int(n) for n in values[4:6]) if by_channel else (int(n) for n in values[3:5])
        self._weight(
            node, name, codes, WeightGrid(Grid(INT8 if (lo, hi) != (-127, 127) else Format(8, lo, hi), scale, zero), axis)
        )

    def _weight(self, node: fx.Node, name: str, codes: Tensor, grid: WeightGrid) -> None:
        path = self._hold(f"{name}.weight", grid.grid.decode(codes))
        self.weights[path] = grid
        with self.graph.inserting_after(node):
            node.replace_all_uses_with(self.graph.create_node("get_attr", path))
        self.graph.erase_node(node)

    def _hold(self, path: str, value: Tensor) -> str:
        """Put a tensor at a path of the module, in the place of what was there."""
        owner: Any = self.root
        *parents, leaf = path.split(".")
        for part in parents:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        if hasattr(owner, leaf):
            delattr(owner, leaf)
        owner.register_buffer(leaf, value.detach().clone())
        return path

    def _layer(self, node: fx.Node) -> str:
        """The name of the layer that reads a weight; `ModelError` where it is none."""
        reader = next(iter(node.users), None)
        while reader is not None and reader.target in DEQUANTIZE:
            reader = next(iter(reader.users), None)
        if reader is None or op_name(reader).removeprefix("aten.") not in _COMPUTE:
            what = "nothing" if reader is None else f"`{self.names.get(reader, reader.name)}` ({reader.target})"
            raise ModelError(
                f"{what} reads quantized weights: only conv1d, conv2d, conv3d and linear layers with weights are read"
            )
        return self.names[reader]

    def _value(self, node: fx.Node) -> Any:
        """What a constant node computes."""
        if node.op == "get_attr":
            owner: Any = self.root
            for part in str(node.target).split("."):
                owner = getattr(owner, part)
            return owner.detach()
        known = {n: self._value(n) for n in node.all_input_nodes}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _fold(self, norm: fx.Node) -> None:
        """conv(x, W)/s, normalized -> conv(x, W) with a bias; other normalizations stay as they are."""
        given = arguments(norm)
        if given["training"]:
            raise UsageError("batch normalization is in training mode: torchao's move_exported_model_to_eval(model) first")
        read, bias = given["input"], None
        if read.target is aten.add.Tensor and _constant(read.args[1]):
            read, bias = read.args[0], self._value(read.args[1]).flatten()
        if read.target is not aten.div.Tensor or not _constant(read.args[1]):
            return
        conv, scale = read.args[0], self._value(read.args[1]).flatten()
        if op_name(conv).removeprefix("aten.") not in _COMPUTE or len(conv.users) != 1:
            return
        gamma, beta, mean, var = (self._value(given[n]) for n in ("weight", "bias", "running_mean", "running_var"))
        if not torch.equal(scale, gamma / torch.sqrt(var + given["eps"])):
            return
        start = torch.zeros_like(mean) if bias is None else bias
        whole = beta + ((start.double() - mean.double()) * scale.double()).float()
        path = self._hold(f"{self.names[conv]}.bias", whole)
        with self.graph.inserting_before(conv):
            added = self.graph.create_node("get_attr", path)
        args = list(conv.args)
        conv.args = (*args[:2], added, *args[3:])
        norm.replace_all_uses_with(conv)


def _constant(node: fx.Node) -> bool:
    """Whether a node is computed from the module's own tensors alone."""
    computed = node.op in ("call_function", "call_module") and bool(node.all_input_nodes)
    return node.op == "get_attr" or computed and all(_constant(n) for n in node.all_input_nodes)


def _names(graph: fx.Graph) -> dict[fx.Node, str]:
    """The name of each value: a module's path for its layer or only operator, else path.operator, as capture names them."""
    names: dict[fx.Node, str] = {}
    taken: set[str] = set()
    calls = [n for n in graph.nodes if n.op == "call_function" and op_name(n).startswith("aten.") and not _constant(n)]
    # What stands between a layer and its normalization is folded away: it must not count in the names of others.
    between = {n for c in calls if op_name(c) == "aten.batch_norm" and _divided(c) is not None for n in _between(c)}
    stacks = {n: _stack(n) for n in calls if n not in between}
    count = Counter(path for path, _ in stacks.values())
    for node in graph.nodes:
        if node.op == "placeholder":
            word = str(node.target)
        elif node in stacks:
            path, kind = stacks[node]
            operator = op_name(node).removeprefix("aten.").strip("_")
            whole = operator in _COMPUTE or (kind.startswith("torch.nn.modules.") and count[path] == 1)
            word = path if path and whole else f"{path}.{operator}" if path else operator
        else:
            continue
        names[node] = unique(word, taken)
        taken.add(names[node])
    # A layer's normalization is folded into it: both forms of the model call the result by the layer's name.
    for node in stacks:
        if op_name(node) == "aten.batch_norm" and (layer := _divided(node)) is not None:
            names[node] = names[layer]
    return names


def _divided(norm: fx.Node) -> fx.Node | None:
    read: Any = norm.args[0]
    if read.target is aten.add.Tensor:
        read = read.args[0]
    behind: Any = read.args[0] if read.target is aten.div.Tensor else None
    return behind if isinstance(behind, fx.Node) and op_name(behind).removeprefix("aten.") in _COMPUTE else None


def _between(norm: fx.Node) -> list[fx.Node]:
    """The division and the addition in front of a normalization."""
    read: Any = norm.args[0]
    return [read, read.args[0]] if read.target is aten.add.Tensor else [read]


def _stack(node: fx.Node) -> tuple[str, str]:
    """Path and class of the innermost module that made the operator."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    return str(path), kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
