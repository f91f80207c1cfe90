"""What the instruction set changes in ONNX Runtime's integers on x86-64: literals, each with where it was read and measured.

Which kernels MLAS takes is decided in `mlas/lib/platform.cpp` by CPUID alone. On every ISA here u8×u8 products are widened
to int16 and summed exactly (vpmaddwd), s8×s8 runs a scalar kernel and is exact, depthwise convolutions multiply in int16 or
int32 and are exact. Only u8×s8 differs: vpmaddubsw adds two products in saturating int16, vpdpbusd adds four in int32.
"""

from __future__ import annotations

from collections.abc import Mapping

from exactq.errors import unknown
from exactq.numerics.formats import Grid

SATURATES: Mapping[str, bool] = {
    # AVX2 without VNNI: MlasGemmU8S8KernelAvx2, MlasConvSymDispatchAvx2. MatMulInteger of 255·127 over four is 65534.
    "avx2": True,
    # AVX512-VNNI: MlasGemmU8S8KernelAvx512Vnni, MlasConvSymDispatchAvx512Vnni. The same product is 129540.
    "avx512vnni": False,
}
"""ISA -> whether pairs of u8×s8 products saturate in int16, for the ISAs that were measured (ORT 1.31.1)."""

ISAS: tuple[str, ...] = tuple(SATURATES)
"""The instruction sets whose integers were measured."""


def saturates(isa: str, x: Grid, w: Grid, *, depthwise: bool = False) -> bool:
    """Whether a product of `x` codes with `w` codes adds pairs in saturating int16 on that instruction set.

    `depthwise` is a convolution with one input and one output channel a group. Raises `UsageError` for an unmeasured ISA.
    """
    if isa not in SATURATES:
        raise unknown("instruction set", isa, ISAS)
    return SATURATES[isa] and not x.format.signed and w.format.signed and not depthwise
