"""The arithmetic of ONNX Runtime's CPU integer kernels (MLAS), bit for bit on the instruction sets in `ISAS`.

Each kernel is a factory: it takes the constants of an operator and returns a function on codes in any storage (integers, or
float32 holding integers) that returns codes as float32 holding integers. Evidence: targets/onnxruntime/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from exactq.kernels.mlas.anatomy import ANATOMIES
from exactq.kernels.mlas.conv import conv, conv_accumulator
from exactq.kernels.mlas.elementwise import add, mul
from exactq.kernels.mlas.gemm import gemm, gemm_accumulator, matmul, matmul_accumulator
from exactq.kernels.mlas.isa import ISAS, SATURATES, saturates
from exactq.kernels.mlas.movement import narrow, pad, reshape, transpose
from exactq.kernels.mlas.pool import average_pool, global_average_pool, max_pool
from exactq.kernels.mlas.quantize import dequantize_linear, quantize_linear
from exactq.kernels.mlas.table import concat, leaky_relu, logistic, sigmoid, table
from exactq.kernels.pairs import PAIR_LIMIT, pair_sums, saturating_pairs

KERNELS: Mapping[str, Callable[..., Callable[..., Tensor]]] = {
    "quantize_linear": quantize_linear,
    "dequantize_linear": dequantize_linear,
    "conv": conv,
    "gemm": gemm,
    "matmul": matmul,
    "add": add,
    "mul": mul,
    "global_average_pool": global_average_pool,
    "average_pool": average_pool,
    "max_pool": max_pool,
    "sigmoid": sigmoid,
    "leaky_relu": leaky_relu,
    "concat": concat,
    "pad": pad,
    "narrow": narrow,
    "transpose": transpose,
    "reshape": reshape,
}
"""Name -> factory. `ANATOMIES` has the same names: how one element of the result comes about."""

__all__ = [
    "ANATOMIES",
    "ISAS",
    "KERNELS",
    "PAIR_LIMIT",
    "SATURATES",
    "add",
    "average_pool",
    "concat",
    "conv",
    "conv_accumulator",
    "dequantize_linear",
    "gemm",
    "gemm_accumulator",
    "global_average_pool",
    "leaky_relu",
    "logistic",
    "matmul",
    "matmul_accumulator",
    "max_pool",
    "mul",
    "narrow",
    "pad",
    "pair_sums",
    "quantize_linear",
    "reshape",
    "saturates",
    "saturating_pairs",
    "sigmoid",
    "table",
    "transpose",
]
