"""What ONNX Runtime's CPU provider can do in integers: literals, each with its source (onnxruntime 1.31 sources, measured)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import fx

from exactq.graphs.graph import op_name
from exactq.kernels.mlas import SATURATES
from exactq.numerics.formats import INT2, INT3, INT4, INT8, UINT4, UINT8
from exactq.plans.rules import Ability, Activates, Computes, Makes, Passes, Rule

NAME = "onnxruntime"

SELECTORS = "core/optimizer/qdq_transformer/selectors_actions/qdq_selector_action_transformer.cc"


def _option(node: fx.Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _conv_declines(node: fx.Node) -> str | None:
    return "QLinearConv takes its padding as numbers" if isinstance(_option(node, 4, "padding", [0]), str) else None


def _depthwise(node: fx.Node, weight_shape: Sequence[int]) -> bool:
    """One input and one output channel a group: a kernel of int32 products that never saturates (qdwconv_avx2.cpp)."""
    return weight_shape[1] == 1 and weight_shape[0] == _option(node, 6, "groups", 1)


def _add_declines(node: fx.Node) -> str | None:
    return "QLinearAdd has no alpha" if node.kwargs.get("alpha", 1) != 1 else None


def _mean_pool_declines(node: fx.Node) -> str | None:
    size = _option(node, 1, "output_size", 1)
    sizes = size if isinstance(size, list | tuple) else [size]
    return None if prod(int(s) for s in sizes) == 1 else "only the pool to a single pixel has an integer kernel"


def _average_declines(node: fx.Node) -> str | None:
    if _option(node, 4, "ceil_mode", False):
        return "QLinearAveragePool with ceil_mode was not measured"
    if _option(node, 6, "divisor_override", None) is not None:
        return "QLinearAveragePool has no divisor_override"
    return None


def _max_pool_declines(node: fx.Node) -> str | None:
    return "MaxPool on codes with ceil_mode was not measured" if _option(node, 5, "ceil_mode", False) else None


def _clamp_declines(node: fx.Node) -> str | None:
    lo, hi = _option(node, 1, "min", None), _option(node, 2, "max", None)
    return None if lo == 0 and (hi is None or hi > 0) else "only bounds that start at zero end where a grid of codes can end"


def _pad_declines(node: fx.Node) -> str | None:
    if any(int(p) < 0 for p in node.args[1]):  # type: ignore[union-attr,arg-type]
        return "Pad on codes with negative padding was not measured"
    return None


_CONV = Computes("QLinearConv", "core/providers/cpu/quantization/qlinearconv.cc", declines=_conv_declines, exempt=_depthwise)
_POOL_1 = Makes("QLinearGlobalAveragePool", "contrib_ops/cpu/quantization/qlinear_global_average_pool.cc", _mean_pool_declines)
_AVERAGE = Makes("QLinearAveragePool", "contrib_ops/cpu/quantization/qlinear_pool.cc", _average_declines)
_MAX = Passes("MaxPool", "core/providers/cpu/nn/pool.cc: MaxPool v12 on uint8 and int8", _max_pool_declines)


def _moves(kernel: str) -> Passes:
    return Passes(kernel, f"core/providers/cpu/tensor: {kernel} on uint8 copies bytes")


OPERATORS: dict[str, Rule] = {
    "aten.conv1d": _CONV,
    "aten.conv2d": _CONV,
    "aten.conv3d": _CONV,
    "aten.linear": Computes("QGemm", "contrib_ops/cpu/quantization/quant_gemm.cc"),
    "aten.matmul": Makes("QLinearMatMul", "core/providers/cpu/quantization/quantize_linear_matmul.cc"),
    "aten.add": Makes("QLinearAdd", "contrib_ops/cpu/quantization/qlinear_binary_op.cc", _add_declines),
    "aten.mul": Makes("QLinearMul", "contrib_ops/cpu/quantization/qlinear_binary_op.cc"),
    "aten.cat": Makes("QLinearConcat", "contrib_ops/cpu/quantization/qlinear_concat.cc"),
    "aten.sigmoid": Makes("QLinearSigmoid", "contrib_ops/cpu/quantization/qlinear_lookup_table.cc"),
    "aten.leaky_relu": Makes("QLinearLeakyRelu", "contrib_ops/cpu/quantization/qlinear_lookup_table.cc"),
    "aten.adaptive_avg_pool1d": _POOL_1,
    "aten.adaptive_avg_pool2d": _POOL_1,
    "aten.adaptive_avg_pool3d": _POOL_1,
    "aten.avg_pool1d": _AVERAGE,
    "aten.avg_pool2d": _AVERAGE,
    "aten.avg_pool3d": _AVERAGE,
    "aten.max_pool1d": _MAX,
    "aten.max_pool2d": _MAX,
    "aten.max_pool3d": _MAX,
    "aten.relu": Activates(
        "relu", f"{SELECTORS}; core/optimizer/relu_clip_fusion.cc: no step where the zero is the lowest code"
    ),
    "aten.clamp": Activates("clamp", f"{SELECTORS}; core/optimizer/qdq_transformer/clip_quantizelinear.cc", _clamp_declines),
    "aten.view": _moves("Reshape"),
    "aten.flatten": _moves("Flatten"),
    "aten.unsqueeze": _moves("Unsqueeze"),
    "aten.squeeze": _moves("Squeeze"),
    "aten.permute": _moves("Transpose"),
    "aten.transpose": _moves("Transpose"),
    "aten.slice": _moves("Slice"),
    "aten.constant_pad_nd": Passes("Pad", "core/providers/cpu/tensor/pad.cc: Pad on uint8 with the zero's code", _pad_declines),
}


def ability(isa: str) -> Ability:
    """ONNX Runtime's abilities on an instruction set of `kernels.mlas.ISAS`."""
    return Ability(
        target=NAME,
        isa=isa,
        operators=OPERATORS,
        weights=tuple(f for full in (INT8, INT4, INT3, INT2) for f in (full.narrow, full) if f.lo < f.hi),
        activations=(UINT8,),
        saturates=SATURATES[isa],
        saturation_source="core/mlas/lib/x86_64/QgemmU8X8KernelAvx2.S: vpmaddubsw adds two products in a saturating int16",
        stored_bits={2: 8, 3: 8, 4: 8},
        narrow=(UINT4,),  # uint8 behind a Clip of the codes (core/providers/cpu/math/clip.cc takes uint8)
    )


def operator_rule(node: fx.Node) -> Rule | None:
    """The rule for a call, or None where everything stays float."""
    return OPERATORS.get(op_name(node))
