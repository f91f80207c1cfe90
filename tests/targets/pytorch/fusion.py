"""What a loaded file calls where everything between the borders is integers."""

from __future__ import annotations

from collections.abc import Mapping

from exactq.quantized import Quantized
from exactq.targets.pytorch.rules import OPERATORS

LAYOUT = {"aten.clone", "aten.view"}
"""How a reshape of a transposed output is captured; the codes were decoded before."""


def only_integers(operators: Mapping[str, int], made: Quantized) -> None:
    """Calls on codes alone, quantized once for each input and decoded once for each output."""
    borders = {"quantize_per_tensor": len(made.graph.inputs), "dequantize": len(set(made.graph.outputs))}
    assert {k: operators.get(k, 0) for k in borders} == borders, operators
    rules = OPERATORS[made.plan.target]
    kernels = {rule.kernel for rule in rules.values()}
    assert set(operators) - set(borders) - LAYOUT <= kernels | {f"{kernel}_relu" for kernel in kernels}, operators
