"""The arithmetic of ATen's own quantized kernels, which PyTorch's engines share, bit for bit on the instruction sets of `isa`.

They run on one thread on dense codes, images with their channels last. Evidence: targets/pytorch/README.md.
"""

from __future__ import annotations

from exactq.kernels.aten.anatomy import ANATOMIES
from exactq.kernels.aten.dynamic import dynamic_grid, dynamic_scale
from exactq.kernels.aten.elementwise import add, hardswish, leaky_relu, mul, sigmoid
from exactq.kernels.aten.isa import BLOCK, LANES
from exactq.kernels.aten.pool import adaptive_average_pool, average_pool, concat, mean
from exactq.kernels.aten.quantize import (
    dequantize,
    fake_quantize_per_channel,
    fake_quantize_per_tensor,
    quantize_decomposed,
    quantize_per_channel,
    quantize_per_tensor,
)

__all__ = [
    "ANATOMIES",
    "BLOCK",
    "LANES",
    "adaptive_average_pool",
    "add",
    "average_pool",
    "concat",
    "dequantize",
    "dynamic_grid",
    "dynamic_scale",
    "fake_quantize_per_channel",
    "fake_quantize_per_tensor",
    "hardswish",
    "leaky_relu",
    "mean",
    "mul",
    "quantize_decomposed",
    "quantize_per_channel",
    "quantize_per_tensor",
    "sigmoid",
]
