"""The emulator follows ONNX Runtime's own choice: what fuses, what is removed, what stays float."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests.targets.networks import EXAMPLES, batch, quantized
from torch import fx

import exactq
from exactq.numerics.formats import UINT8, Grid
from exactq.plans.plan import Own, Plan
from exactq.targets.onnxruntime.lower import implied, removed
from exactq.targets.onnxruntime.runtime import Tracer

aten = torch.ops.aten
SIX = np.float32(6) / np.float32(255)


def session(activation: Any, scale: float, zero: int, *, conv: bool) -> set[str]:
    """The operators of the optimised session of Q, DQ, perhaps a convolution, the activation, Q, DQ."""
    constants: dict[str, Any] = {"sx": np.float32(0.01), "zx": np.uint8(100), "sy": np.float32(scale), "zy": np.uint8(zero)}
    nodes = [helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"])]
    nodes += [helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["r"])]
    if conv:
        constants |= {"w": np.ones((4, 3, 1, 1), np.int8), "sw": np.float32(0.01), "zw": np.int8(0)}
        nodes += [helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wr"]), helper.make_node("Conv", ["r", "wr"], ["c"])]
    if activation == "relu":
        nodes.append(helper.make_node("Relu", ["c" if conv else "r"], ["a"]))
    else:
        bounds = {k: v for k, v in zip(("lo", "hi"), activation, strict=True) if v is not None}
        constants |= {k: np.float32(v) for k, v in bounds.items()}
        names = [k if k in bounds else "" for k in ("lo", "hi")]
        nodes.append(helper.make_node("Clip", ["c" if conv else "r", *(names if names[1] else names[:1])], ["a"]))
    nodes += [helper.make_node("QuantizeLinear", ["a", "sy", "zy"], ["p"])]
    nodes += [helper.make_node("DequantizeLinear", ["p", "sy", "zy"], ["y"])]
    shape = ["n", 3, 4, 4]
    graph = helper.make_graph(
        nodes,
        "activation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return set(Tracer(model.SerializeToString()).operators)


CASES: list[tuple[Any, float, int]] = [
    ("relu", 0.02, 0),
    ("relu", 0.02, 1),
    ((0, 6), float(SIX), 0),
    ((0, 6), float(np.nextafter(SIX, np.float32(1))), 0),
    ((0, 6), float(np.nextafter(SIX, np.float32(0))), 0),
    ((0, 6), 6.01 / 255, 0),
    ((0, 6), 6.0117 / 255, 0),
    ((0, 6), 6.03 / 255, 0),
    ((0, 6), 4 / 255, 0),
    ((0, 1e30), 0.02, 0),
    ((0, None), 0.02, 0),
    ((None, 6), float(SIX), 0),
    ((None, 6), 6.01 / 255, 0),
    ((0.001, None), 0.02, 0),
    ((0.001, 6), float(SIX), 0),
    ((-0.001, 6), float(SIX), 0),
    ((0.02, 6), float(SIX), 0),
    ((-1, 1), 2 / 255, 128),
    ((None, 5.1), 0.02, 10),
    ((0, 1.5e-7), 1e-9, 0),
    ((0, 1.2e-7), 1e-9, 0),
]


@pytest.mark.runtime
@pytest.mark.parametrize(("activation", "scale", "zero"), CASES)
def test_an_activation_is_dropped_where_the_runtime_drops_it(activation: Any, scale: float, zero: int) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(aten.relu.default, (x,))
    if activation != "relu":
        node = graph.call_function(aten.clamp.default, (x, *activation))
    grid = Grid(UINT8, torch.tensor(scale, dtype=torch.float32), torch.tensor(zero, dtype=torch.int32))
    assert removed(node, grid) == session(activation, scale, zero, conv=False).isdisjoint({"Relu", "Clip"})
    assert implied(node, grid) == ("QLinearConv" in session(activation, scale, zero, conv=True))


@pytest.mark.runtime
@pytest.mark.parametrize("example", EXAMPLES["aten.matmul"], ids=lambda e: e.name)
def test_a_product_of_two_activations_that_a_plan_wants_as_codes_is_an_integer_kernel(example: Any) -> None:
    made = quantized(example)
    torch.manual_seed(0)
    model = example.make().eval()
    slots = {k: Own(UINT8, "minmax", "asked for") if k == "matmul" else s for k, s in made.plan.slots.items()}
    plan = Plan(made.plan.target, made.plan.isa, made.plan.recipe, slots)
    made = exactq.quantize(model, batch(example, 2, 1), calibration=[batch(example, 32, 2)], plan=plan)
    verdict = exactq.verify(made, [batch(example, 64, 3, 1.5)])
    assert (verdict.mismatches, verdict.unverified) == (0, ())
    assert verdict.operators["QLinearMatMul"] == 1
    assert verdict.operators["DequantizeLinear"] == 1
