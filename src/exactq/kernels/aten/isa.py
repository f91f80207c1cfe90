"""What the instruction set changes in ATen's own quantized kernels on x86-64: literals, measured on torch 2.13."""

from __future__ import annotations

from collections.abc import Mapping

LANES: Mapping[str, int] = {"avx2": 8, "avx512vnni": 16}
"""ISA -> float32 lanes of a vector register: how many channels of a pixel a pool takes at a time."""

BLOCK = 64
"""Codes that a turn of an elementwise loop takes, on both; those left over at the end are made one by one."""
