"""What torch.compile makes of Q/DQ graphs on x86-64: literals, each with its source (torch 2.13 sources, measured)."""

from __future__ import annotations

from exactq.kernels import onednn
from exactq.numerics.formats import INT2, INT3, INT4, INT8, UINT8
from exactq.plans.rules import Ability, Activates, Computes, Declines, Makes, Passes, Rule
from exactq.targets.pytorch.rules import (
    ceils,
    clamp_declines,
    divides_otherwise,
    every,
    has_alpha,
    never_saturates,
    not_of_last_axes,
    pad_declines,
    padding_is_text,
)

NAME = "inductor"

PASSES = "torch/_inductor/fx_passes/quantization.py"
LOWERING = "torch/_inductor/lowering.py"


def _convolution() -> Computes:
    source = f"{PASSES}: _register_qconv_unary_fusion"
    return Computes("onednn.qconv_pointwise", source, declines=padding_is_text, exempt=never_saturates)


def _loop(operator: str, *declines: Declines) -> Makes:
    return Makes(f"the compiled {operator}", f"{LOWERING}: IEEE operations, compiled with -ffp-contract=off", every(*declines))


def _moves(operator: str) -> Passes:
    return Passes(f"the compiled {operator}", f"{LOWERING}: {operator}, reals that were decoded get their codes again")


def _pool(operator: str, *declines: Declines) -> Passes:
    source = f"{LOWERING}: the sum of the codes' integers, divided"
    return Passes(f"the compiled {operator}", source, every(*declines), how="averages codes on the grid they have")


OPERATORS: dict[str, Rule] = {
    "aten.conv1d": _convolution(),
    "aten.conv2d": _convolution(),
    "aten.linear": Computes("onednn.qlinear_pointwise", f"{PASSES}: _register_qlinear_unary_fusion"),
    "aten.add": Makes(
        "the compiled add",
        f"{LOWERING}: IEEE operations; {PASSES}: _register_qconv_binary_fusion",
        has_alpha,
        {"aten.conv2d": "onednn.qconv2d_pointwise"},
    ),
    "aten.mul": _loop("mul"),
    "aten.cat": _loop("cat"),
    "aten.hardswish": _loop("hardswish"),
    "aten.leaky_relu": _loop("leaky_relu"),
    "aten.relu": Activates("relu", f"{PASSES}: PostOpAttr relu"),
    "aten.clamp": Activates("clamp", f"{PASSES}: outputs are clamped to the codes of their grid", clamp_declines),
    **{f"aten.max_pool{n}d": _moves(f"max_pool{n}d") for n in (1, 2, 3)},
    "aten.avg_pool1d": _pool("avg_pool1d", ceils),
    "aten.avg_pool2d": _pool("avg_pool2d", ceils, divides_otherwise),
    "aten.avg_pool3d": _pool("avg_pool3d", ceils, divides_otherwise),
    **{f"aten.adaptive_avg_pool{n}d": _pool(f"adaptive_avg_pool{n}d") for n in (1, 2, 3)},
    "aten.mean": _pool("mean", not_of_last_axes),
    **{f"aten.{op}": _moves(op) for op in "view flatten unsqueeze squeeze permute transpose slice".split()},
    "aten.constant_pad_nd": Passes("the compiled constant_pad_nd", f"{LOWERING}: constant_pad_nd", pad_declines),
}
"""ATen operator -> what the compiled module does to codes.

Not there: convolutions of three axes, which no pattern finds and which run in float; the exponential of sigmoid and its kin.
"""


def ability(isa: str) -> Ability:
    """The abilities of the compiled module on an instruction set of `pytorch.rules.ISAS`."""
    return Ability(
        target=NAME,
        isa=isa,
        operators=OPERATORS,
        weights=tuple(f for full in (INT8, INT4, INT3, INT2) for f in (full.narrow, full) if f.lo < f.hi),
        activations=(UINT8,),
        saturates=onednn.SATURATES[isa],
        saturation_source="oneDNN src/cpu/x64/jit_uni_x8s8s32x_conv_kernel.cpp: vpmaddubsw without VNNI",
        stored_bits={2: 8, 3: 8, 4: 8},
        bias=None,
        pairs="pairsafe-taps",
    )
