"""What the instruction set changes in oneDNN's int8 integers on x86-64: literals, each with where it was read and measured."""

from __future__ import annotations

from collections.abc import Mapping

SATURATES: Mapping[str, bool] = {
    # cpu/x64/jit_uni_x8s8s32x_conv_kernel.cpp compute: vpmaddubsw without VNNI. 255·127 over eight is 131068.
    "avx2": True,
    # The same function emits vpdpbusd. The product is 259080.
    "avx512vnni": False,
}
"""ISA -> whether pairs of u8×s8 products saturate in int16, for the ISAs that were measured (torch 2.13)."""
