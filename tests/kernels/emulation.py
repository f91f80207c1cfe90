"""The same cases on exactq's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from exactq.kernels import mlas
from exactq.numerics.formats import INT8, UINT8, Grid

from .cases import Array, Case


def grid(codes: Array, scale: Array, zero: Array, *, rank: int = 0) -> Grid:
    """The grid of an operand; a vector of scales lies along the first of `rank` axes."""
    fmt = UINT8 if codes.dtype == np.uint8 else INT8
    shape = (-1, *[1] * (rank - 1)) if scale.ndim else ()
    return Grid(fmt, torch.from_numpy(scale.copy()).reshape(shape), torch.from_numpy(zero.astype(np.int32)).reshape(shape))


def emulate(case: Case, isa: str) -> Array:
    """What the kernels of that instruction set answer, in the dtype of the case's output."""
    inputs: Any = {name: a for name, a in case.inputs.items() if a is not None}
    tensors = {name: torch.from_numpy(a) for name, a in inputs.items()}
    attributes: Any = case.attributes
    last = attributes.get("channels_last", 0)
    if last:
        tensors["x"] = tensors["x"].permute(0, 3, 1, 2)
    out = _compute(case.op, inputs, tensors, attributes, isa)
    return (out.permute(0, 2, 3, 1) if last else out).numpy().astype(case.out)


def _compute(op: str, inputs: Any, t: dict[str, Tensor], attributes: Any, isa: str) -> Tensor:
    def x() -> Grid:
        return grid(inputs["x"], inputs["sx"], inputs["zx"])

    def y() -> Grid:
        return grid(inputs.get("x", inputs.get("a")), inputs["sy"], inputs["zy"])

    def w(rank: int) -> Grid:
        return grid(inputs["w"], inputs["sw"], inputs["zw"], rank=rank)

    match op:
        case "QLinearConv":
            options = {k: attributes[n] for k, n in (("stride", "strides"), ("padding", "pads"), ("dilation", "dilations"))}
            grids = {"x": x(), "w": w(t["w"].ndim), "y": y()}
            return mlas.conv(t["w"], t.get("bias"), **grids, **options, groups=attributes["group"], isa=isa)(t["x"])
        case "QLinearMatMul" if t["w"].ndim == 3:
            return mlas.matmul(a=x(), b=w(0), y=y(), isa=isa)(t["x"], t["w"])
        case "QLinearMatMul":
            return mlas.gemm(t["w"].T, None, x=x(), w=w(2), y=y(), isa=isa)(t["x"])
        case "QGemm":
            out = y() if "sy" in inputs else None
            return mlas.gemm(t["w"], t.get("bias"), x=x(), w=w(2), y=out, isa=isa, alpha=attributes["alpha"])(t["x"])
        case "MatMulInteger":
            one = np.ones(inputs["zw"].shape, np.float32)
            grids = {
                "x": grid(inputs["x"], np.array(1, np.float32), inputs["zx"]),
                "w": grid(inputs["w"], one, inputs["zw"], rank=2),
            }
            return mlas.gemm_accumulator(t["w"].T, None, **grids, isa=isa)(t["x"])
        case "QLinearAdd" | "QLinearMul":
            kernel = mlas.add if op == "QLinearAdd" else mlas.mul
            a, b = (grid(inputs[n], inputs[f"s{n}"], inputs[f"z{n}"]) for n in "ab")
            return kernel(a, b, y())(t["a"], t["b"])
        case "QLinearGlobalAveragePool":
            return mlas.global_average_pool(x(), y())(t["x"])
        case "QLinearAveragePool":
            return mlas.average_pool(x(), y(), **_window(attributes), count_include_pad=bool(attributes["count_include_pad"]))(
                t["x"]
            )
        case "MaxPool":
            return mlas.max_pool(**_window(attributes), dilation=attributes["dilations"])(t["x"])
        case "QLinearConcat":
            out = grid(inputs["x0"], inputs["sy"], inputs["zy"])
            xs = [grid(inputs[f"x{n}"], inputs[f"s{n}"], inputs[f"z{n}"]) for n in "01"]
            return mlas.concat(xs, out, axis=attributes["axis"])(t["x0"], t["x1"])
        case "QLinearLeakyRelu":
            return mlas.leaky_relu(x(), y(), slope=attributes["alpha"])(t["x"])
        case "QLinearSigmoid":
            return mlas.sigmoid(x(), y())(t["x"])
        case "Sigmoid":
            return mlas.logistic(t["x"])
        case "QuantizeLinear":
            return mlas.quantize_linear(grid(inputs["z"], inputs["s"], inputs["z"]))(t["x"])
        case "DequantizeLinear":
            return mlas.dequantize_linear(grid(inputs["x"], inputs["s"], inputs["z"]))(t["x"])
        case "Pad":
            of = grid(inputs["x"], np.array(1, np.float32), inputs["zero"])
            return mlas.pad(of, padding=inputs["pads"].tolist())(t["x"])
        case "Slice":
            return mlas.narrow(**{n: inputs[n].tolist() for n in ("starts", "ends", "axes", "steps")})(t["x"])
    raise AssertionError(f"no kernel for {op}: add it to the table")


def _window(attributes: Any) -> dict[str, Any]:
    return {
        "kernel": attributes["kernel_shape"],
        "stride": attributes["strides"],
        "padding": attributes["pads"],
        "ceil": bool(attributes["ceil_mode"]),
    }
