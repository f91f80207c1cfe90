"""What a loaded file calls where everything between the borders is integers."""

from __future__ import annotations

from collections.abc import Mapping

from exactq.plans.rules import Makes
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
    kernels |= {kernel for rule in rules.values() if isinstance(rule, Makes) for kernel in rule.joins.values()}
    assert set(operators) - set(borders) - LAYOUT <= kernels | {f"{kernel}_relu" for kernel in kernels}, operators


CALLED = ("onednn.qconv_pointwise", "onednn.qconv2d_pointwise", "onednn.qlinear_pointwise")
"""What Inductor calls for what multiplies with weights; everything else are loops that it writes."""


def only_lowered(operators: Mapping[str, int], made: Quantized) -> None:
    """Each layer is one call of oneDNN's on codes, as the emulator has it, and nothing is asked of PyTorch's float kernels."""
    steps = [step.kernel for step in made.program().steps]
    assert {name: operators.get(name, 0) for name in CALLED} == {name: steps.count(name) for name in CALLED}, operators
    assert set(operators) - {*CALLED} <= {"loop", "quantized.max_pool2d", "aten.avg_pool2d"}, operators
