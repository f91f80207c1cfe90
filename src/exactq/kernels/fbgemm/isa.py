"""What the instruction set changes in FBGEMM's integers on x86-64: literals, each with where it was read and measured."""

from __future__ import annotations

from collections.abc import Mapping

SATURATES: Mapping[str, bool] = {
    # CodeGenHelpers.h emitDotProduct: vpmaddubsw adds two products in saturating int16. 255·127 over eight is 131068.
    "avx2": True,
    # The same function emits vpdpbusd where the CPU has VNNI. The product is 259080.
    "avx512vnni": False,
}
"""ISA -> whether pairs of u8×s8 products saturate in int16, for the ISAs that were measured (torch 2.13)."""
