"""What PyTorch's int8 CPU engines can do in integers: literals, each with its source (torch 2.13 sources, measured)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from exactq.graphs.graph import arguments
from exactq.kernels import fbgemm, onednn
from exactq.numerics.formats import INT2, INT3, INT4, INT8, INT32, UINT8
from exactq.plans.rules import Ability, Activates, Computes, Declines, Makes, Passes, Rule

ISAS = ("avx2", "avx512vnni")
"""The instruction sets whose integers were measured."""

CPU = "aten/src/ATen/native/quantized/cpu"


@dataclass(frozen=True)
class Engine:
    """A value of `torch.backends.quantized.engine`. `libraries` names the kernels of convolutions and of linear layers.

    `saturates` says for each ISA whether these add u8×s8 products in saturating int16; `source` is where that is written.
    """

    name: str
    libraries: Mapping[str, tuple[str, str]]
    saturates: Mapping[str, bool]
    source: str


ENGINES = {
    e.name: e
    for e in (
        Engine(
            "fbgemm",
            dict.fromkeys(ISAS, ("fbgemm", "fbgemm")),
            fbgemm.SATURATES,
            "fbgemm src/CodeGenHelpers.h: emitReduction of vpmaddubsw without VNNI",
        ),
        Engine(
            "x86",
            {"avx2": ("fbgemm", "fbgemm"), "avx512vnni": ("onednn", "fbgemm")},
            fbgemm.SATURATES,
            f"{CPU}/OnednnUtils.h: should_use_onednn_quant; FBGEMM otherwise, whose vpmaddubsw saturates without VNNI",
        ),
        Engine(
            "onednn",
            dict.fromkeys(ISAS, ("onednn", "onednn")),
            onednn.SATURATES,
            "oneDNN src/cpu/x64/jit_uni_x8s8s32x_conv_kernel.cpp: vpmaddubsw without VNNI",
        ),
        Engine(
            "qnnpack",
            dict.fromkeys(ISAS, ("qnnpack", "qnnpack")),
            dict.fromkeys(ISAS, False),
            "qnnpack src/q8gemm/4x4c2-sse2.c: products of int16 added in int32",
        ),
    )
}
"""Engine name -> what it is made of. Elementwise operators and pools are ATen's own, but for those QNNPACK has."""

GROUPS = 100
"""The engine x86 gives convolutions of more groups to FBGEMM on every machine, and those whose weights have zeros other than 0
(OnednnUtils.h: should_use_onednn_quant)."""


def every(*checks: Declines) -> Declines:
    """The first reason that one of the checks gives."""
    return lambda node: next((reason for check in checks if (reason := check(node)) is not None), None)


def padding_is_text(node: fx.Node) -> str | None:
    """Why a convolution whose padding is a word cannot run in integers."""
    return "quantized convolutions take their padding as numbers" if isinstance(arguments(node)["padding"], str) else None


def has_alpha(node: fx.Node) -> str | None:
    """Why a sum whose second operand has a factor cannot run in integers."""
    return "quantized::add has no alpha" if node.kwargs.get("alpha", 1) != 1 else None


def ceils(node: fx.Node) -> str | None:
    """Why a pool that rounds its size up cannot run in integers."""
    return "pools of codes with ceil_mode were not measured" if arguments(node)["ceil_mode"] else None


def divides_otherwise(node: fx.Node) -> str | None:
    """Why a pool with a divisor of its own cannot run in integers."""
    given = arguments(node).get("divisor_override") is not None
    return "the average pool of codes has no divisor_override that was measured" if given else None


def _single(node: fx.Node) -> str | None:
    sizes = arguments(node)["kernel_size"]
    return "QNNPACK refuses to pool single pixels" if all(int(n) == 1 for n in _several(sizes)) else None


def _padding_not_counted(node: fx.Node) -> str | None:
    given = arguments(node)
    padded = any(int(n) for n in _several(given["padding"]))
    return "QNNPACK counts padded pixels whatever count_include_pad says" if padded and not given["count_include_pad"] else None


def _several(value: object) -> Sequence[int]:
    return value if isinstance(value, list | tuple) else [value]  # type: ignore[list-item]


def clamp_declines(node: fx.Node) -> str | None:
    """Why these bounds are not those of a grid."""
    given = arguments(node)
    lo, hi = given.get("min"), given.get("max")
    return None if lo == 0 and (hi is None or hi > 0) else "only bounds that start at zero end where a grid of codes can end"


def pad_declines(node: fx.Node) -> str | None:
    """Why this padding cannot be of codes."""
    if any(int(p) < 0 for p in node.args[1]):  # type: ignore[union-attr,arg-type]
        return "padding codes by negative numbers was not measured"
    return None


def not_of_last_axes(node: fx.Node) -> str | None:
    """Why a mean cannot run in integers: codes are summed where they lie behind one another."""
    given = arguments(node)
    dims = {int(n) for n in given.get("dim") or ()}
    last = bool(dims) and (dims == set(range(-len(dims), 0)) or dims == {2, 3})
    if not last or given.get("dtype") is not None:
        return "means of codes are those of the last axes (-1, -2 …, or 2 and 3 of an image)"
    return None


def _moves(operator: str) -> Passes:
    return Passes(operator, f"aten/src/ATen/native/TensorShape.cpp: {operator} of a quantized tensor moves bytes")


def _depthwise_fast(node: fx.Node, shape: Sequence[int]) -> bool:
    """FBGEMM's own depthwise kernels are AVX2 code, whose pairs of taps saturate on every machine."""
    given, rank = arguments(node), len(shape) - 2
    places = {name: tuple(_several(given[name])) for name in ("stride", "padding", "dilation")}
    whole = {name: value * (rank // len(value)) for name, value in places.items()}
    whole["padding"] *= 2
    return fbgemm.depthwise_fast(shape, **whole, groups=int(given["groups"]))


def never_saturates(node: fx.Node, shape: Sequence[int]) -> bool:
    """oneDNN's depthwise and reference kernels multiply in int32."""
    groups = int(arguments(node)["groups"])
    return onednn.depthwise(shape, groups) or onednn.reference(shape, groups)


def _many_depthwise_fast(node: fx.Node, shape: Sequence[int]) -> bool:
    return int(arguments(node)["groups"]) > GROUPS and _depthwise_fast(node, shape)


def _convolutions(**saturation: Any) -> dict[str, Rule]:
    source = f"{CPU}/qconv.cpp"
    return {
        f"aten.conv{n}d": Computes(f"quantized::conv{n}d", source, declines=padding_is_text, **saturation) for n in (1, 2, 3)
    }


_CONVOLUTIONS: dict[str, dict[str, Rule]] = {
    "fbgemm": _convolutions(always=_depthwise_fast),
    "x86": _convolutions(always=_many_depthwise_fast),
    "onednn": _convolutions(exempt=never_saturates),
    "qnnpack": _convolutions(),
}


def _pool(operator: str, file: str, *declines: Declines) -> Passes:
    return Passes(operator, f"{CPU}/{file}", every(*declines), how="averages codes on the grid they have")


_QCAT = Makes("quantized::cat", f"{CPU}/kernels/QuantizedOpKernels.cpp: cat_out_quantized, qcat_nhwc_kernel")
_ADAPTIVE = "AdaptiveAveragePooling.cpp"

_SHARED: dict[str, Rule] = {
    "aten.linear": Computes("quantized::linear", f"{CPU}/qlinear.cpp"),
    "aten.add": Makes("quantized::add", f"{CPU}/BinaryOps.cpp", has_alpha),
    "aten.mul": Makes("quantized::mul", f"{CPU}/kernels/QuantizedOpKernels.cpp: qmul_kernel"),
    "aten.cat": _QCAT,
    "aten.leaky_relu": Makes("quantized::leaky_relu", f"{CPU}/kernels/QuantizedOpKernels.cpp: leaky_qrelu_out_kernel"),
    "aten.hardswish": Makes("quantized::hardswish", f"{CPU}/qhardswish.cpp"),
    "aten.adaptive_avg_pool1d": _pool("adaptive_avg_pool1d", _ADAPTIVE),
    "aten.adaptive_avg_pool2d": _pool("adaptive_avg_pool2d", _ADAPTIVE),
    "aten.mean": Passes(
        "mean", f"{CPU}/ReduceOps.cpp: mean_out_quantized_cpu", not_of_last_axes, how="averages codes on the grid they have"
    ),
    "aten.relu": Activates("relu", f"{CPU}/qconv.cpp: conv2d_relu, qlinear.cpp: linear_relu, BinaryOps.cpp: add_relu"),
    "aten.clamp": Activates("clamp", f"{CPU}/qconv.cpp: outputs are clamped to the codes of their grid", clamp_declines),
    "aten.view": _moves("view"),
    "aten.flatten": _moves("flatten"),
    "aten.unsqueeze": _moves("unsqueeze"),
    "aten.squeeze": _moves("squeeze"),
    "aten.permute": _moves("permute"),
    "aten.transpose": _moves("transpose"),
    "aten.slice": _moves("slice"),
    "aten.constant_pad_nd": Passes("constant_pad_nd", "aten/src/ATen/native/PadNd.cpp: quantized outputs", pad_declines),
}

_ATEN: dict[str, Rule] = {
    "aten.sigmoid": Makes("quantized::sigmoid", f"{CPU}/kernels/QuantizedOpKernels.cpp: qsigmoid_kernel"),
    "aten.avg_pool1d": _pool("avg_pool1d", "AveragePool2d.cpp", ceils),
    "aten.avg_pool2d": _pool("avg_pool2d", "AveragePool2d.cpp", ceils, divides_otherwise),
    "aten.avg_pool3d": _pool("avg_pool3d", "AveragePool3d.cpp", ceils, divides_otherwise),
    **{f"aten.max_pool{n}d": Passes(f"max_pool{n}d", f"{CPU}/Pooling.cpp", ceils) for n in (1, 2, 3)},
}

_QNNPACK: dict[str, Rule] = {
    "aten.avg_pool1d": _pool("avg_pool1d", "AveragePool2d.cpp", ceils, _single, _padding_not_counted),
    "aten.avg_pool2d": _pool("avg_pool2d", "AveragePool2d.cpp", ceils, divides_otherwise, _single, _padding_not_counted),
    "aten.avg_pool3d": _pool("avg_pool3d", "AveragePool3d.cpp", ceils, divides_otherwise),
    **{f"aten.max_pool{n}d": Passes(f"max_pool{n}d", f"{CPU}/Pooling.cpp", every(ceils, _single)) for n in (1, 2)},
}

_ADDS = f"{CPU}/qconv.cpp: QConvAddInt8, which only oneDNN has"
_ONEDNN: dict[str, Rule] = {
    "aten.add": Makes("quantized::add", f"{CPU}/BinaryOps.cpp; {_ADDS}", has_alpha, {"aten.conv2d": "quantized::conv2d_add"})
}
_OWN = {"qnnpack": _QNNPACK, "onednn": _ATEN | _ONEDNN}

OPERATORS: dict[str, dict[str, Rule]] = {name: _CONVOLUTIONS[name] | _SHARED | _OWN.get(name, _ATEN) for name in ENGINES}
"""Engine -> ATen operator -> what it does to codes.

Not there: QNNPACK's sigmoid, which exists on one output grid alone; three-dimensional adaptive pools, which to one pixel are a
float mean; products of two activations, which PyTorch decodes, multiplies in float and encodes again.
"""


DYNAMIC: dict[str, Computes] = {
    "aten.linear": Computes(
        "quantized::linear_dynamic", f"{CPU}/qlinear_dynamic.cpp: reals in, a grid for each tensor, reals out"
    )
}
"""ATen operator -> the kernel of every engine that makes the grid of its input when it sees it."""


def ability(name: str, isa: str) -> Ability:
    """The abilities of an engine on an instruction set of `ISAS`."""
    engine = ENGINES[name]
    return Ability(
        target=name,
        isa=isa,
        operators=OPERATORS[name],
        weights=tuple(f for full in (INT8, INT4, INT3, INT2) for f in (full.narrow, full) if f.lo < f.hi),
        activations=(UINT8,),
        saturates=engine.saturates[isa],
        saturation_source=engine.source,
        stored_bits={2: 8, 3: 8, 4: 8},
        bias=INT32 if name == "qnnpack" else None,
        rounds_bias=name == "qnnpack",
        weight_zeros=name != "onednn",  # qconv_prepack.cpp, qlinear_prepack.cpp: oneDNN wants zeros of 0
        pairs="pairsafe-taps" if name == "onednn" else "pairsafe-depthwise",
        dynamic=DYNAMIC,
    )
