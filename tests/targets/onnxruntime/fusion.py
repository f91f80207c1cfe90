"""What the optimised session of a fully quantized network holds."""

from __future__ import annotations

from collections.abc import Mapping

from exactq.plans.rules import Passes
from exactq.quantized import Quantized
from exactq.targets.onnxruntime.rules import OPERATORS

LAYOUT = {"Transpose", "Flatten", "Reshape"}
"""What the session adds: channels-last, and matrices of rows."""
MOVES = {rule.kernel for rule in OPERATORS.values() if isinstance(rule, Passes)} | {"NhwcMaxPool", "Split"}


def only_integers(operators: Mapping[str, int], made: Quantized) -> None:
    """Integer kernels and movement alone, quantized once for each input and decoded once for each output."""
    kernels = {rule.kernel for rule in OPERATORS.values()}
    borders = {"QuantizeLinear": len(made.graph.inputs), "DequantizeLinear": len(set(made.graph.outputs))}
    assert {k: operators.get(k, 0) for k in borders} == borders, operators
    assert set(operators) - set(borders) <= kernels | MOVES | LAYOUT, operators
