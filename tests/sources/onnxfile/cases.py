"""One small file for each ONNX operator and each way in which versions and exporters write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from .files import Sizes, node, proto, random

IMAGE = {"x": (1, 4, 7, 9)}
ROWS = {"x": (1, 6)}
I64 = np.int64


@dataclass(frozen=True)
class Case:
    """Nodes that read `x`, their constants, and the opset; `free` says whether its batch is proven to be free."""

    nodes: Sequence[NodeProto]
    inputs: Mapping[str, Sizes] = field(default_factory=lambda: IMAGE)
    constants: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    free: bool = True

    def proto(self) -> onnx.ModelProto:
        return proto(self.nodes, self.inputs, self.constants, opset=self.opset)


def case(
    kind: str,
    *,
    inputs: Mapping[str, Sizes] = IMAGE,
    opset: int = 17,
    free: bool = True,
    constants: Mapping[str, Any] | None = None,
    reads: str | None = None,
    **attributes: Any,
) -> Case:
    """A file of one node that reads its inputs, then its constants in order."""
    constants = constants or {}
    names = reads if reads is not None else " ".join([*inputs, *constants])
    return Case([node(kind, names, "y", **attributes)], inputs, constants, opset, free)


def ints(*values: int) -> np.ndarray:
    return np.array(values, I64)


W = {"w": random(6, 4, 3, 3), "b": random(6)}
NORM = {"s": random(4), "o": random(4, seed=1), "m": random(4, seed=2), "v": random(4, positive=True)}
SEQUENCE, VOLUME = {"x": (1, 4, 11)}, {"x": (1, 2, 5, 6, 7)}

CASES: dict[str, Case] = {
    # Layers
    "Conv": case("Conv", constants=W),
    "Conv, everything": case("Conv", constants=W, pads=[2, 1, 2, 1], strides=[2, 1], dilations=[1, 2], kernel_shape=[3, 3]),
    "Conv, uneven": case("Conv", constants=W, pads=[0, 1, 1, 2], strides=[2, 2]),
    "Conv, SAME_UPPER": case("Conv", constants=W, auto_pad="SAME_UPPER", strides=[2, 2]),
    "Conv, SAME_LOWER": case("Conv", constants=W, auto_pad="SAME_LOWER", strides=[2, 2]),
    "Conv, VALID": case("Conv", constants=W, auto_pad="VALID"),
    "Conv, groups": case("Conv", constants={"w": random(8, 1, 3, 3)}, group=4),
    "Conv, 1d": case("Conv", inputs=SEQUENCE, constants={"w": random(5, 4, 3)}, pads=[1, 1]),
    "Conv, 3d": case("Conv", inputs=VOLUME, constants={"w": random(3, 2, 2, 3, 3)}, pads=[0, 1, 1, 1, 1, 1]),
    "ConvTranspose": case("ConvTranspose", constants={"w": random(4, 3, 2, 2), "b": random(3)}, strides=[2, 2]),
    "ConvTranspose, everything": case(
        "ConvTranspose", constants={"w": random(4, 3, 3, 3)}, strides=[2, 3], pads=[1, 1, 1, 0], output_padding=[1, 0], group=2
    ),
    "ConvTranspose, output_shape": case(
        "ConvTranspose", constants={"w": random(4, 3, 3, 3)}, strides=[2, 2], output_shape=[14, 18]
    ),
    "ConvTranspose, SAME_LOWER": case(
        "ConvTranspose", constants={"w": random(4, 3, 4, 4)}, strides=[2, 2], auto_pad="SAME_LOWER"
    ),
    "ConvTranspose, 1d": case("ConvTranspose", inputs=SEQUENCE, constants={"w": random(4, 3, 3)}, dilations=[2]),
    "BatchNormalization": case("BatchNormalization", constants=NORM, epsilon=1e-2),
    "BatchNormalization, 9": case("BatchNormalization", constants=NORM, opset=9, momentum=0.5),
    "LayerNormalization": case("LayerNormalization", constants={"s": random(9), "o": random(9)}, epsilon=1e-3),
    "LayerNormalization, two": case("LayerNormalization", constants={"s": random(7, 9)}, axis=2),
    "Gemm": case("Gemm", inputs=ROWS, constants={"w": random(6, 5), "b": random(5)}),
    "Gemm, transB": case("Gemm", inputs=ROWS, constants={"w": random(5, 6), "b": random(1, 5)}, transB=1),
    "Gemm, factors": case("Gemm", inputs=ROWS, constants={"w": random(6, 5), "b": random(1)}, alpha=0.5, beta=2.0),
    "Gemm, no bias": case("Gemm", inputs=ROWS, constants={"w": random(6, 5)}, opset=11),
    "Gemm, opset 9": case("Gemm", inputs=ROWS, constants={"w": random(6, 5), "b": np.float32(1)}, opset=9),
    "Gemm, computed": case("Gemm", inputs={"x": (2, 6), "z": (2, 6)}, transB=1, alpha=0.5, free=False),
    "Gemm, transA": case("Gemm", inputs={"x": (6, 2)}, constants={"w": random(6, 5)}, transA=1, free=False),
    "MatMul": case("MatMul", inputs=ROWS, constants={"w": random(6, 5)}),
    "MatMul, stacked": case("MatMul", inputs={"x": (1, 3, 6)}, constants={"w": random(6, 5)}),
    "MatMul, computed": case("MatMul", inputs={"x": (1, 3, 6), "z": (1, 6, 2)}),
    # Pooling
    "MaxPool": case("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0]),
    "MaxPool, uneven": case("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
    "MaxPool, SAME_UPPER": case("MaxPool", kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    "MaxPool, dilated": case("MaxPool", kernel_shape=[2, 2], dilations=[2, 3], opset=12),
    "MaxPool, ceil": case("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "MaxPool, 1d": case("MaxPool", inputs=SEQUENCE, kernel_shape=[3]),
    "MaxPool, 3d": case("MaxPool", inputs=VOLUME, kernel_shape=[2, 2, 2]),
    "AveragePool": case("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool, include": case("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, strides=[2, 1]),
    "AveragePool, uneven": case("AveragePool", kernel_shape=[3, 3], pads=[0, 1, 1, 1], strides=[2, 2]),
    "AveragePool, uneven include": case("AveragePool", kernel_shape=[3, 3], pads=[0, 1, 1, 1], count_include_pad=1),
    "AveragePool, SAME_LOWER": case("AveragePool", kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_LOWER"),
    "GlobalAveragePool": case("GlobalAveragePool"),
    "GlobalMaxPool": case("GlobalMaxPool"),
    "ReduceMean": case("ReduceMean", axes=[2, 3]),
    "ReduceMean, no dims": case("ReduceMean", axes=[-1, -2], keepdims=0),
    "ReduceMean, 18": case("ReduceMean", constants={"a": ints(1)}, opset=18, keepdims=0),
    "ReduceMean, all": case("ReduceMean", free=False),
    "ReduceMean, noop": case("ReduceMean", opset=18, noop_with_empty_axes=1),
    "ReduceMax": case("ReduceMax", axes=[1]),
    "ReduceSum": case("ReduceSum", constants={"a": ints(1, 3)}, opset=13),
    "ReduceSum, 11": case("ReduceSum", axes=[2], keepdims=0, opset=11),
    # Activations and arithmetic
    **{kind: case(kind) for kind in "Abs Ceil Erf Exp Floor Identity Neg Relu Sigmoid Softplus Tanh HardSwish Elu".split()},
    **{
        kind: Case([node("Abs", "x", "a"), node("Add", "a c", "p"), node(kind, "p", "y")], constants={"c": np.float32(0.5)})
        for kind in ("Sqrt", "Log", "Reciprocal")
    },
    "LeakyRelu": case("LeakyRelu", alpha=0.2),
    "PRelu": case("PRelu", constants={"s": random(4, 1, 1)}),
    "PRelu, one": case("PRelu", constants={"s": random(1)}),
    "Clip, 6": case("Clip", min=0.0, max=6.0, opset=9),
    "Clip, 6, lower": case("Clip", min=-0.5, opset=10),
    "Clip": case("Clip", constants={"lo": np.float32(0), "hi": np.float32(6)}),
    "Clip, upper": case("Clip", constants={"hi": np.float32(0.5)}, reads="x - hi"),
    "Clip, nothing": case("Clip"),
    "HardSigmoid": case("HardSigmoid"),
    "HardSigmoid, sixth": case("HardSigmoid", alpha=1 / 6),
    "Gelu": case("Gelu", opset=20),
    "Gelu, tanh": case("Gelu", opset=20, approximate="tanh"),
    "Softmax": case("Softmax"),
    "Softmax, axis": case("Softmax", axis=1),
    "Softmax, 11": case("Softmax", opset=11),
    "Softmax, 11, last": case("Softmax", inputs=ROWS, opset=11, axis=-1),
    "LogSoftmax": case("LogSoftmax", axis=-2),
    "Add": case("Add", inputs={"x": (1, 4, 7, 9), "z": (1, 4, 7, 9)}),
    "Add, constant": case("Add", constants={"c": random(4, 1, 1)}),
    "Sub": case("Sub", constants={"c": random(1)}, reads="c x"),
    "Mul": case("Mul", constants={"c": np.float32(2)}),
    "Div": case("Div", constants={"c": random(9, positive=True)}),
    "Pow": case("Pow", constants={"c": np.float32(2)}),
    "Pow, of a number": case("Pow", constants={"c": np.float32(2)}, reads="c x"),
    "Max": case("Max", constants={"c": random(9), "d": np.float32(0.1)}),
    "Max, zero": case("Max", constants={"c": np.float32(0)}, reads="c x"),
    "Min": case("Min", inputs={"x": (1, 5), "z": (1, 5)}, constants={"c": np.float32(0.3)}),
    "Dropout": case("Dropout", constants={"r": np.float32(0.5)}),
    "Dropout, 10": case("Dropout", opset=10, ratio=0.3),
    # Movement
    "Reshape": case("Reshape", constants={"s": ints(1, -1)}),
    "Reshape, sizes": case("Reshape", constants={"s": ints(1, 252)}),
    "Reshape, zero": case("Reshape", constants={"s": ints(0, 2, -1)}),
    "Reshape, inner": case("Reshape", constants={"s": ints(1, 2, 2, 63)}),
    "Reshape, no batch": case("Reshape", constants={"s": ints(-1)}, free=False),
    "Flatten": case("Flatten"),
    "Flatten, axis": case("Flatten", axis=-2, free=False),
    "Transpose": case("Transpose", perm=[0, 2, 3, 1]),
    "Transpose, all": case("Transpose", free=False),
    "Squeeze": case("Squeeze", inputs={"x": (1, 4, 1, 1)}, constants={"a": ints(2, 3)}, opset=13),
    "Squeeze, 11": case("Squeeze", inputs={"x": (1, 4, 1, 1)}, axes=[-1, 2], opset=11),
    "Squeeze, all": case("Squeeze", inputs={"x": (1, 4, 1, 1)}, free=False),
    "Unsqueeze": case("Unsqueeze", constants={"a": ints(1, -1)}, opset=13),
    "Unsqueeze, 11": case("Unsqueeze", axes=[1], opset=11),
    "Concat": Case([node("Relu", "x", "r"), node("Concat", "x r", "y", axis=1)]),
    "Concat, samples": Case([node("Concat", "x x", "y", axis=0)], free=False),
    "Slice": case("Slice", constants={"s": ints(1, -5), "e": ints(6, 2**62), "a": ints(2, 3), "t": ints(2, 1)}),
    "Slice, 9": case("Slice", starts=[1], ends=[3], axes=[1], opset=9),
    "Slice, back": case("Slice", constants={"s": ints(-1), "e": ints(-(2**62)), "a": ints(1), "t": ints(-2)}),
    "Slice, everything": case("Slice", constants={"s": ints(0, 0), "e": ints(2**62, 9), "a": ints(0, 3)}),
    "Split": Case([node("Split", "x", "y z", axis=1), node("Sub", "y z", "d")]),
    "Split, sizes": Case([node("Split", "x s", "y z", axis=1), node("Mul", "y z", "d")], constants={"s": ints(1, 3)}),
    "Split, 11": Case([node("Split", "x", "y z", axis=1, split=[3, 1]), node("Mul", "y z", "d")], opset=11),
    "Split, 18": Case([node("Split", "x", "a b", axis=2, num_outputs=2), node("Concat", "b a", "y", axis=2)], opset=18),
    "Pad": case("Pad", constants={"p": ints(0, 0, 1, 2, 0, 0, 3, 0), "v": np.float32(1.5)}),
    "Pad, 10": case("Pad", pads=[0, 1, 0, 2, 0, 0, 1, 0], value=0.5, opset=10),
    "Pad, axes": case("Pad", constants={"p": ints(1, 2, 3, 4), "v": np.float32(0), "a": ints(-1, 2)}, opset=18),
    "Pad, reflect": case("Pad", constants={"p": ints(0, 0, 1, 2, 0, 0, 3, 1)}, mode="reflect"),
    "Pad, edge": case("Pad", constants={"p": ints(0, 0, 1, 2, 0, 0, 3, 1)}, mode="edge"),
    "Pad, samples": case("Pad", constants={"p": ints(0, 0, 0, 0, 1, 0, 0, 0)}, free=False),
    "Gather": case("Gather", constants={"i": ints(3, 0, -1)}, axis=1),
    "Gather, one": case("Gather", constants={"i": np.array(2, I64)}, axis=2),
    "Gather, sample": case("Gather", constants={"i": np.array(0, I64)}, free=False),
    "Expand": case("Expand", inputs={"x": (1, 4, 1)}, constants={"s": ints(1, 1, 5)}),
    "Tile": case("Tile", inputs=ROWS, constants={"r": ints(1, 2)}, free=False),
    "Where": case("Where", constants={"c": random(4, 1, 1) > 0, "z": np.float32(3)}, reads="c x z"),
    "Cast": case("Cast", to=1),
    "Upsample": case("Upsample", constants={"s": np.float32([1, 1, 2, 3])}, mode="nearest", opset=9),
    "Resize, 10": case("Resize", constants={"s": np.float32([1, 1, 2, 2])}, mode="nearest", opset=10),
    "Resize, nearest": case("Resize", constants={"s": np.float32([1, 1, 3, 2])}, reads="x - s"),
    "Resize, asymmetric": case(
        "Resize",
        constants={"n": ints(1, 4, 10, 20)},
        reads="x - - n",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "Resize, linear": case("Resize", constants={"s": np.float32([1, 1, 2, 2])}, reads="x - s", mode="linear"),
    "Resize, to sizes": case(
        "Resize",
        constants={"n": ints(1, 4, 10, 5)},
        reads="x - - n",
        mode="linear",
        coordinate_transformation_mode="pytorch_half_pixel",
    ),
    "Resize, corners": case(
        "Resize",
        constants={"n": ints(1, 4, 13, 17)},
        reads="x - - n",
        mode="linear",
        coordinate_transformation_mode="align_corners",
    ),
    # What only works out shapes
    "Shape": Case(
        [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "n"),
            node("Unsqueeze", "n first", "m"),
            node("Constant", "", "k", value_ints=[-1]),
            node("Concat", "m k", "t", axis=0),
            node("Reshape", "x t", "y"),
        ],
        constants={"zero": np.array(0, I64), "first": ints(0)},
    ),
    "Range": Case(
        [
            node("Shape", "x", "s", start=1),
            node("ReduceProd", "s", "n", keepdims=0),
            node("Range", "zero n one", "r"),
            node("Cast", "r", "f", to=1),
            node("Div", "f n2", "g"),
            node("Flatten", "x", "z"),
            node("Mul", "z g", "y"),
        ],
        constants={"zero": np.array(0, I64), "one": np.array(1, I64), "n2": np.float32(252)},
    ),
    "ConstantOfShape": Case(
        [
            node("Shape", "x", "s", start=1),
            node("ConstantOfShape", "s", "c", value=onnx.numpy_helper.from_array(np.float32([0.5]))),
            node("Mul", "x c", "y"),
        ]
    ),
    "Size": Case([node("Size", "x", "n"), node("Cast", "n", "f", to=1), node("Div", "x f", "y")]),
    "Equal": Case(
        [
            node("Equal", "s m", "e"),
            node("Greater", "s m", "g"),
            node("Less", "s m", "l"),
            node("Or", "g l", "o"),
            node("Not", "e", "n"),
            node("And", "o n", "a"),
            node("Where", "a s t", "w"),
            node("Reshape", "x w", "y"),
        ],
        constants={"s": ints(1, 4, 0), "m": ints(-1, -1, 0), "t": ints(1, 1, -1)},
    ),
}
"""Name -> file; the name begins with the operator that it is about."""
