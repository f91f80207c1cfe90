"""Which tensor of the optimised session is which tensor of the file, and in which order it holds the axes.

ONNX Runtime fuses nodes and keeps the name of the one that computes, lets data run channels-last, and pushes transposes
through whatever lies in their way. A tensor that keeps its name is what the file says; where a pass changes what a node makes,
the node keeps its name up to a suffix and the tensor gets a new one. The axes of such a tensor follow from the operator: a
channels-last kernel puts the channels last, an elementwise one keeps what it reads, seen from the file's own operand.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

Axes = tuple[int, ...]
"""For each axis of a tensor, which axis of the file's tensor it is: (0, 2, 3, 1) for channels-last."""

_SUFFIX = re.compile(r"(_token_\d+|/duplicated)+$")

_FUSED = ("QLinear", "QGemm")
_OWN_ORDER = {"QGemm", "QLinearMatMul", "Gemm", "MatMul", "Reshape", "Flatten"}
_IMAGES = {
    "QLinearConv",
    "QLinearGlobalAveragePool",
    "QLinearAveragePool",
    "Conv",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
}
_OPERANDS: dict[str, Any] = {
    "QLinearAdd": slice(0, 4, 3),
    "QLinearMul": slice(0, 4, 3),
    "QLinearConcat": slice(2, None, 3),
    "QLinearWhere": slice(1, 5, 3),
}
"""Where the kernels of several operands have their data."""
_UNARY = frozenset(
    (
        "QuantizeLinear DequantizeLinear Relu Clip Neg Abs Sigmoid Tanh LeakyRelu HardSwish HardSigmoid Erf Exp Log Sqrt Round "
        "Floor Ceil Sin Cos Elu Selu Celu Gelu QuickGelu Softplus Softsign Mish ThresholdedRelu Softmax LogSoftmax"
    ).split()
)
_SEVERAL = frozenset("Add Sub Mul Div Pow Max Min PRelu Greater Less Where Concat".split())
_KEEP = {*_UNARY, *_SEVERAL, *_OPERANDS, *"QLinearSigmoid QLinearLeakyRelu QLinearSoftmax Slice Pad Resize".split()}
"""The operators whose result lies as their operands do, whatever order that is."""


@dataclass(frozen=True)
class View:
    """A tensor of the file as seen through transposes."""

    tensor: str
    axes: Axes


class _File:
    """What the file says: each tensor's maker and rank, the tensor behind each fused node, transposes seen through."""

    def __init__(self, model: onnx.ModelProto) -> None:
        known = onnx.shape_inference.infer_shapes(model).graph
        infos = [*known.input, *known.output, *known.value_info]
        self.rank = {i.name: len(i.type.tensor_type.shape.dim) for i in infos if i.type.tensor_type.HasField("shape")}
        self.codes = {i.name for i in infos if i.type.tensor_type.elem_type in (TensorProto.UINT8, TensorProto.INT8)}
        self.makers = {o: n for n in model.graph.node for o in n.output}
        self.nodes = {n.name: n for n in model.graph.node}
        self.outputs = {o.name for o in model.graph.output}
        self.constants = {t.name: t for t in model.graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def root(self, tensor: str, through: frozenset[str] = frozenset()) -> View | None:
        """The tensor in front of the transposes that make this one and of the operators `through`; None without a rank."""
        maker = self.makers.get(tensor)
        if maker is None or maker.op_type not in through | {"Transpose"}:
            return View(tensor, tuple(range(self.rank[tensor]))) if tensor in self.rank else None
        inner = self.root(maker.input[0], through)
        if inner is None or maker.op_type != "Transpose":
            return inner
        return View(inner.tensor, tuple(inner.axes[a] for a in _attributes(maker)["perm"]))

    def relative(self, view: View | None, tensor: str, through: frozenset[str] = frozenset()) -> Axes | None:
        """The axes of a view as those of `tensor`, where both are transposes of one tensor, seen through unary operators."""
        root = self.root(tensor, through)
        seen = None if view is None else self.root(view.tensor, through)
        if view is None or seen is None or root is None or seen.tensor != root.tensor:
            return None
        return tuple(root.axes.index(seen.axes[a]) for a in view.axes)

    def made(self, node: onnx.NodeProto, first: View | None) -> str | None:
        """The file's tensor that a node of the optimised session makes: that of the QuantizeLinear behind a fused one.

        `first` is its first operand: a node that reads codes where the file's reads reals was fused.
        """
        origin = self.origin(node)
        if origin is None or not self.fused(node, first):
            return None if origin is None else origin.output[0]
        while origin.op_type != "QuantizeLinear":
            readers = self._readers.get(origin.output[0], [])
            if len(readers) != 1 or readers[0].op_type not in ("Relu", "Clip", "QuantizeLinear"):
                return None
            origin = readers[0]
        return origin.output[0]

    def kept(self) -> dict[str, str]:
        """Codes that are bounded and encoded again on the very grid they had -> those codes, which the session goes on with."""
        found: dict[str, str] = {}
        for name, maker in self.makers.items():
            inner = self.makers.get(maker.input[0]) if maker.op_type == "QuantizeLinear" else None
            while inner is not None and inner.op_type in ("Relu", "Clip"):
                inner = self.makers.get(inner.input[0])
            if inner is not None and inner.op_type == "DequantizeLinear":
                here, there = ([self.constants[i].raw_data for i in n.input[1:]] for n in (maker, inner))
                if here == there:
                    found[name] = found.get(inner.input[0], inner.input[0])
        return found

    def origin(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The file's node of that name."""
        return self.nodes.get(_SUFFIX.sub("", node.name))

    def fused(self, node: onnx.NodeProto, first: View | None) -> bool:
        """Whether a node of the optimised session took the Q/DQ nodes around it in."""
        origin = self.origin(node)
        reads_codes = first is not None and first.tensor in self.codes and node.op_type != "DequantizeLinear"
        return node.op_type.startswith(_FUSED) or reads_codes and origin is not None and origin.input[0] not in self.codes

    def operands(self, node: onnx.NodeProto, *, fused: bool) -> Iterator[tuple[str, str]]:
        """Each operand of a node that keeps its operands' order, and the file's tensor that it was there."""
        origin = self.nodes[_SUFFIX.sub("", node.name)]
        now = node.input[_OPERANDS[node.op_type]] if node.op_type in _OPERANDS else node.input[:1]
        now = node.input if node.op_type in _SEVERAL else now
        then = origin.input[1:] if node.op_type == "QLinearWhere" else origin.input
        for tensor, before in zip(now, then, strict=False):
            maker = self.makers.get(before)
            decoded = fused and maker is not None and maker.op_type == "DequantizeLinear"
            yield tensor, maker.input[0] if decoded and maker is not None else before


def find(model: onnx.ModelProto, optimized: onnx.ModelProto) -> dict[str, View]:
    """The file's codes and outputs -> the tensor of the optimised session that holds them, and its axes.

    What no kernel of the optimised session makes is left out: a transpose that was merged into its neighbours, for one.
    """
    file = _File(model)
    constants = {t.name: t for t in optimized.graph.initializer}
    views: dict[str, View | None] = {i.name: file.root(i.name) for i in model.graph.input}
    held: dict[str, View] = {}
    moved: set[str] = set()
    parts: set[str] = set()
    for node in optimized.graph.node:
        tensor = node.output[0]
        if tensor in file.makers:
            views[tensor] = file.root(tensor)
            rank = file.rank.get(tensor)
            if rank is not None:
                held.setdefault(tensor, View(tensor, tuple(range(rank))))
        elif node.op_type == "Transpose":
            before = views.get(node.input[0])
            if before is not None:
                views[tensor] = View(before.tensor, tuple(before.axes[a] for a in _attributes(node)["perm"]))
                moved.add(tensor)
        elif (made := file.made(node, views.get(node.input[0]))) is not None and (
            axes := _axes(file, node, made, views, constants)
        ) is not None:
            views[tensor] = View(made, axes)
            held.setdefault(made, View(tensor, axes))
        elif file.origin(node) is None and node.op_type in _KEEP:
            # A part of an operator that ONNX Runtime took apart: it lies as what it reads, whatever it holds.
            read = {view for name in node.input if (view := views.get(name)) is not None}
            views[tensor] = read.pop() if len(read) == 1 else None
            parts.add(tensor)
    for name in (n for n, maker in file.makers.items() if maker.op_type == "Transpose" and n not in held):
        for tensor, view in views.items():
            axes = file.relative(view, name)
            # Made by a transpose of the session, or a tensor that happens to lie as the file's transpose would have it.
            if axes is not None and tensor not in parts and (tensor in moved or axes == tuple(sorted(axes))):
                held[name] = View(tensor, axes)
                break
    for name, same in file.kept().items():
        if name not in held and same in held:
            held[name] = held[same]
    return {name: view for name, view in held.items() if name in file.codes | file.outputs}


def _axes(
    file: _File,
    node: onnx.NodeProto,
    made: str,
    views: Mapping[str, View | None],
    constants: Mapping[str, onnx.TensorProto],
) -> Axes | None:
    """The axes of what a node makes, as those of the file's tensor `made`; None where that is not known."""
    rank = file.rank.get(made)
    if rank is None:
        return None
    identity = tuple(range(rank))
    if node.op_type == "NhwcMaxPool" or _attributes(node).get("channels_last", 0):
        return (0, *identity[2:], 1)
    if node.op_type in _IMAGES | _OWN_ORDER:
        return identity
    if node.op_type in ("Squeeze", "Unsqueeze"):
        origin = file.makers[made]
        before = file.relative(views.get(node.input[0]), origin.input[0])
        now, then = (_listed(c.get(n.input[1])) for c, n in ((constants, node), (file.constants, origin)))
        return None if before is None or now is None or then is None else _resized(node.op_type, before, now, then)
    if node.op_type not in _KEEP:
        return None
    fused = file.fused(node, views.get(node.input[0]))
    orders = {
        file.relative(views.get(tensor), before, _UNARY)
        for tensor, before in file.operands(node, fused=fused)
        if file.rank.get(before) == rank
    }
    orders.discard(None)  # whatever lies beside an operand whose order is known lies as it does
    return orders.pop() if len(orders) == 1 else None


def _resized(operator: str, before: Axes, now: list[int], then: list[int]) -> Axes:
    """The axes behind a Squeeze or Unsqueeze of the axes `now`, where the file has the axes `then`.

    >>> _resized("Unsqueeze", (0, 2, 1), [1], [2]), _resized("Squeeze", (0, 2, 3, 1), [1, 2], [2, 3])
    ((0, 2, 3, 1), (0, 1))
    """
    if operator == "Unsqueeze":
        rank = len(before) + len(now)
        labels, file_labels = _inserted(before, now, rank), _inserted(range(len(before)), then, rank)
    else:
        rank = len(before)
        labels = [a for i, a in enumerate(before) if i not in {n % rank for n in now}]
        file_labels = [i for i in range(rank) if i not in {n % rank for n in then}]
    return tuple(file_labels.index(label) for label in labels)


def _inserted(labels: Iterable[int], at: Sequence[int], rank: int) -> list[int]:
    """The labels with −1, −2 … at the places `at`."""
    places, rest, fresh = {n % rank for n in at}, iter(labels), itertools.count(-1, -1)
    return [next(fresh) if i in places else next(rest) for i in range(rank)]


def _listed(tensor: onnx.TensorProto | None) -> list[int] | None:
    return None if tensor is None else [int(n) for n in numpy_helper.to_array(tensor).flatten()]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
