"""ATen calls as ONNX nodes: one function an operator, on names. What is not here is translated by PyTorch's own exporter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import fx

from exactq.graphs.graph import op_name

OPSET = 21
INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Decoded:
    """Where a real comes from: codes, scale and zero point by name."""

    codes: str
    scale: str
    zero: str


@dataclass
class Sheet:
    """The ONNX graph as it is written: nodes in order, constants by name.

    `sizes` are those of each tensor, −1 where the batch size shows. `decoded` says of which codes a real was made. `rows` are
    values of more than two dimensions that so far exist as the rows of a matrix alone: the value's name -> that matrix.
    """

    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    decoded: dict[str, Decoded] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)

    def rank(self, name: str) -> int:
        """How many dimensions a tensor has."""
        return len(self.sizes[name])

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """One node, named after its output; returns the output's name."""
        kept = {k: v for k, v in attributes.items() if v is not None}
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **kept))
        return output

    def as_rows(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """As `add`, for an elementwise node: written on the rows where its first operand exists as rows alone."""
        if inputs[0] not in self.rows:
            return self.add(op, inputs, output, **attributes)
        self.rows[output] = self.add(op, [self.rows[inputs[0]], *inputs[1:]], f"{output}/rows", **attributes)
        return output

    def shaped(self, name: str) -> str:
        """The name, with the value now in its own shape."""
        if name in self.rows:
            self._reshape(self.rows.pop(name), name)
        return name

    def _reshape(self, rows: str, output: str) -> None:
        sizes = self.sizes[output]
        if sizes.count(-1) > 1:
            raise NotImplementedError
        self.add("Reshape", [rows, self.integers(f"{output}/shape", sizes)], output)

    def constant(self, name: str, value: Any) -> str:
        """A constant of that name; the same name twice must mean the same bytes."""
        tensor = numpy_helper.from_array(np.array(value, order="C"), name)
        if name in self.constants and self.constants[name] != tensor:
            raise AssertionError(f"two different constants are named '{name}'")
        self.constants[name] = tensor
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        """A constant list of int64."""
        return self.constant(name, np.asarray(values, np.int64))


Emit = Callable[..., None]
"""Write a call on a sheet: (sheet, node, the ONNX names of its tensor operands, the name of its result).

Raises `NotImplementedError` for arguments that it does not know.
"""


def _arg(node: fx.Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _tuple(value: Any, rank: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [int(v) for v in (values * rank if len(values) == 1 else values)]


def _conv(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    rank = int(op_name(node)[-2])
    padding = _tuple(_arg(node, 4, "padding", 0), rank)
    sheet.add(
        "Conv",
        inputs,
        output,
        strides=_tuple(_arg(node, 3, "stride", 1), rank),
        pads=padding * 2,
        dilations=_tuple(_arg(node, 5, "dilation", 1), rank),
        group=int(_arg(node, 6, "groups", 1)),
    )


def _conv_transpose(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    rank = int(op_name(node)[-2])
    padding = _tuple(_arg(node, 4, "padding", 0), rank)
    sheet.add(
        "ConvTranspose",
        inputs,
        output,
        strides=_tuple(_arg(node, 3, "stride", 1), rank),
        pads=padding * 2,
        output_padding=_tuple(_arg(node, 5, "output_padding", 0), rank),
        group=int(_arg(node, 6, "groups", 1)),
        dilations=_tuple(_arg(node, 7, "dilation", 1), rank),
    )


def _linear(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    x = inputs[0]
    if sheet.rank(x) == 2:
        sheet.add("Gemm", inputs, output, transB=1)
        return
    # Gemm takes matrices; a bias in a separate Add would keep the runtime from its integer kernel, and so would a reshape
    # between the kernel and its Q/DQ nodes: codes are reshaped, and the result stays a matrix until it is codes.
    if sheet.sizes[output].count(-1) > 1:
        raise NotImplementedError
    if (of := sheet.decoded.get(x)) is not None:
        flat = sheet.add("Flatten", [of.codes], f"{output}/operand/codes", axis=-1)
        rows = sheet.add("DequantizeLinear", [flat, of.scale, of.zero], f"{output}/operand")
    else:
        rows = sheet.add("Flatten", [x], f"{output}/operand", axis=-1)
    sheet.rows[output] = sheet.add("Gemm", [rows, *inputs[1:]], f"{output}/rows", transB=1)


def _batch_norm(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    if node.args[1] is None or node.args[2] is None:
        raise NotImplementedError
    sheet.add("BatchNormalization", inputs, output, epsilon=float(node.args[7]))  # type: ignore[arg-type]


def _max_pool(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    rank = int(op_name(node)[-2])
    kernel = _tuple(node.args[1], rank)
    stride = _arg(node, 2, "stride", [])
    sheet.add(
        "MaxPool",
        inputs,
        output,
        kernel_shape=kernel,
        strides=_tuple(stride, rank) if stride not in ([], None) else kernel,
        pads=_tuple(_arg(node, 3, "padding", 0), rank) * 2,
        dilations=_tuple(_arg(node, 4, "dilation", 1), rank),
        ceil_mode=int(_arg(node, 5, "ceil_mode", False)),
    )


def _average_pool(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    rank = int(op_name(node)[-2])
    kernel = _tuple(node.args[1], rank)
    stride = _arg(node, 2, "stride", [])
    if _arg(node, 6, "divisor_override", None) is not None:
        raise NotImplementedError
    sheet.add(
        "AveragePool",
        inputs,
        output,
        kernel_shape=kernel,
        strides=_tuple(stride, rank) if stride not in ([], None) else kernel,
        pads=_tuple(_arg(node, 3, "padding", 0), rank) * 2,
        ceil_mode=int(_arg(node, 4, "ceil_mode", False)),
        count_include_pad=int(_arg(node, 5, "count_include_pad", True)),
    )


def _adaptive_average(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    if any(s != 1 for s in _tuple(node.args[1], 1)):
        raise NotImplementedError
    sheet.add("GlobalAveragePool", inputs, output)


def _plain(op: str) -> Emit:
    def emit(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
        sheet.add(op, inputs, output)

    return emit


def _relu(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    sheet.as_rows("Relu", inputs, output)


def _clamp(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    bounds = (_arg(node, 1, "min", None), _arg(node, 2, "max", None))
    if any(isinstance(bound, fx.Node) for bound in bounds):
        raise NotImplementedError
    names = [
        "" if bound is None else sheet.constant(f"{output}/{end}", np.float32(bound))
        for end, bound in zip(("min", "max"), bounds, strict=True)
    ]
    sheet.as_rows("Clip", [*inputs, *names] if names[1] else [*inputs, *names[:1]], output)


def _binary(op: str) -> Emit:
    def emit(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
        if node.kwargs.get("alpha", 1) != 1 or set(node.kwargs) - {"alpha"}:
            raise NotImplementedError
        operands, tensors = [], iter(inputs)
        for index in range(2):
            arg = _arg(node, index, "", None)
            number = not isinstance(arg, fx.Node)
            operands.append(sheet.constant(f"{output}/operand{index}", np.float32(arg)) if number else next(tensors))
        sheet.add(op, operands, output)

    return emit


def _reshape(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    size = node.args[1]
    if not isinstance(size, list | tuple) or not all(isinstance(d, int) for d in size):
        raise NotImplementedError
    sizes = [int(d) for d in size]  # type: ignore[arg-type]
    sheet.add("Reshape", [inputs[0], sheet.integers(f"{output}/shape", sizes)], output)


def _flatten(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    start, end = _arg(node, 1, "start_dim", 0), _arg(node, 2, "end_dim", -1)
    rank = sheet.rank(inputs[0])
    start, end = start % rank, end % rank
    shape = [0] * start + [-1] + [0] * (rank - 1 - end)
    if end != rank - 1 and end != start:
        raise NotImplementedError
    sheet.add("Reshape", [inputs[0], sheet.integers(f"{output}/shape", shape)], output)


def _unsqueeze(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    sheet.add("Unsqueeze", [inputs[0], sheet.integers(f"{output}/axes", [node.args[1]])], output)  # type: ignore[list-item]


def _squeeze(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    if len(node.args) < 2:
        raise NotImplementedError
    sheet.add("Squeeze", [inputs[0], sheet.integers(f"{output}/axes", _tuple(node.args[1], 1))], output)


def _permute(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    rank = sheet.rank(inputs[0])
    sheet.add("Transpose", inputs, output, perm=[int(d) % rank for d in node.args[1]])  # type: ignore[union-attr,arg-type]


def _transpose(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    rank = sheet.rank(inputs[0])
    order = list(range(rank))
    a, b = int(node.args[1]) % rank, int(node.args[2]) % rank  # type: ignore[arg-type]
    order[a], order[b] = order[b], order[a]
    sheet.add("Transpose", inputs, output, perm=order)


def _slice(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    axis, start, end, step = (
        _arg(node, i, n, d) for i, n, d in ((1, "dim", 0), (2, "start", 0), (3, "end", None), (4, "step", 1))
    )
    if any(isinstance(v, fx.Node) for v in (start, end, step)):
        raise NotImplementedError
    bounds = {"starts": start or 0, "ends": INT64_MAX if end is None else end, "axes": axis, "steps": step}
    names = [sheet.integers(f"{output}/{key}", [value]) for key, value in bounds.items()]
    sheet.add("Slice", [inputs[0], *names], output)


def _pad(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str, fill: np.ndarray | None = None) -> None:
    """Constant padding; `fill` is the value in the operand's own type, where that is codes."""
    rank = sheet.rank(inputs[0])
    pairs = [int(p) for p in node.args[1]]  # type: ignore[union-attr,arg-type]
    begins, ends = [0] * rank, [0] * rank
    for index in range(len(pairs) // 2):
        begins[rank - 1 - index], ends[rank - 1 - index] = pairs[2 * index], pairs[2 * index + 1]
    value = np.float32(_arg(node, 2, "value", 0)) if fill is None else fill
    names = [sheet.integers(f"{output}/pads", begins + ends), sheet.constant(f"{output}/fill", np.asarray(value))]
    sheet.add("Pad", [inputs[0], *names], output)


def _softmax(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    if _arg(node, 2, "dtype", None) not in (None, False):
        raise NotImplementedError
    operator = "LogSoftmax" if "log_softmax" in op_name(node) else "Softmax"
    sheet.add(operator, inputs, output, axis=int(_arg(node, 1, "dim", -1)))


def _layer_norm(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    if len(inputs) < 2 or not isinstance(_arg(node, 2, "weight", None), fx.Node):
        raise NotImplementedError
    axes = _tuple(_arg(node, 1, "normalized_shape", None), 1)
    sheet.add("LayerNormalization", inputs, output, axis=-len(axes), epsilon=float(_arg(node, 4, "eps", 1e-5)))


def _gelu(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    sheet.add("Gelu", inputs, output, approximate=str(_arg(node, 1, "approximate", "none")))


def _leaky(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    sheet.add("LeakyRelu", inputs, output, alpha=float(_arg(node, 1, "negative_slope", 0.01)))


def _mean(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    if len(node.args) < 2 or node.kwargs.get("dtype") is not None:
        raise NotImplementedError
    axes = sheet.integers(f"{output}/axes", _tuple(node.args[1], 1))
    sheet.add("ReduceMean", [inputs[0], axes], output, keepdims=int(_arg(node, 2, "keepdim", False)))


def _concat(sheet: Sheet, node: fx.Node, inputs: Sequence[str], output: str) -> None:
    sheet.add("Concat", inputs, output, axis=int(_arg(node, 1, "dim", 0)))


OPERATORS: dict[str, Emit] = {
    "aten.conv1d": _conv,
    "aten.conv2d": _conv,
    "aten.conv3d": _conv,
    "aten.conv_transpose1d": _conv_transpose,
    "aten.conv_transpose2d": _conv_transpose,
    "aten.conv_transpose3d": _conv_transpose,
    "aten.linear": _linear,
    "aten.batch_norm": _batch_norm,
    "aten.max_pool1d": _max_pool,
    "aten.max_pool2d": _max_pool,
    "aten.max_pool3d": _max_pool,
    "aten.avg_pool1d": _average_pool,
    "aten.avg_pool2d": _average_pool,
    "aten.avg_pool3d": _average_pool,
    "aten.adaptive_avg_pool1d": _adaptive_average,
    "aten.adaptive_avg_pool2d": _adaptive_average,
    "aten.adaptive_avg_pool3d": _adaptive_average,
    "aten.relu": _relu,
    "aten.sigmoid": _plain("Sigmoid"),
    "aten.tanh": _plain("Tanh"),
    "aten.matmul": _plain("MatMul"),
    "aten.clamp": _clamp,
    "aten.leaky_relu": _leaky,
    "aten.softmax": _softmax,
    "aten._softmax": _softmax,
    "aten.log_softmax": _softmax,
    "aten._log_softmax": _softmax,
    "aten.layer_norm": _layer_norm,
    "aten.gelu": _gelu,
    "aten.neg": _plain("Neg"),
    "aten.abs": _plain("Abs"),
    "aten.exp": _plain("Exp"),
    "aten.sqrt": _plain("Sqrt"),
    "aten.erf": _plain("Erf"),
    "aten.hardswish": _plain("HardSwish"),
    "aten.add": _binary("Add"),
    "aten.sub": _binary("Sub"),
    "aten.mul": _binary("Mul"),
    "aten.div": _binary("Div"),
    "aten.cat": _concat,
    "aten.mean": _mean,
    "aten.view": _reshape,
    "aten.flatten": _flatten,
    "aten.unsqueeze": _unsqueeze,
    "aten.squeeze": _squeeze,
    "aten.permute": _permute,
    "aten.transpose": _transpose,
    "aten.slice": _slice,
    "aten.constant_pad_nd": _pad,
}

MOVES = frozenset(
    f"aten.{op}"
    for op in "max_pool1d max_pool2d max_pool3d view flatten unsqueeze squeeze permute transpose slice constant_pad_nd".split()
)
"""The operators that ONNX defines on codes as it does on reals."""

ROWS = frozenset({"aten.relu", "aten.clamp"})
"""The operators that are written on the rows of a value that exists as rows alone."""
