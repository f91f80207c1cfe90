"""Which tensor of the optimised session is which of the file: the names, the axes, and what is not there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.targets.networks import CONV, EXAMPLES, IMAGE, WHOLE, Example, Net, batch, between, quantized
from torch import nn

from exactq.targets.onnxruntime.runtime import Tracer, run, session


def test_channels_last_tensors_come_back_channels_first() -> None:
    example = EXAMPLES["aten.conv2d"][0]
    made = quantized(example)
    traced = Tracer(made.artifact()).trace(batch(example, 2, 3))
    assert {name: tuple(value.shape) for name, value in traced.items() if name.endswith("/codes")} == {
        f"{made.graph.inputs[0].name}/codes": (2, 3, 7, 7),
        "a/codes": (2, 6, 7, 7),
        "b/codes": (2, 9, 5, 5),
    }


def test_the_trace_is_that_of_the_graph_without_optimisations_where_nothing_rounds_differently() -> None:
    """Movement and layout show in no value: each traced tensor is what the plain graph has under that name."""
    import onnx

    for example in (
        *EXAMPLES["aten.transpose"],
        *EXAMPLES["aten.permute"],
        *EXAMPLES["aten.unsqueeze"],
        *EXAMPLES["aten.slice"],
    ):
        model = quantized(example).artifact()
        inputs = batch(example, 3, 3)
        traced = Tracer(model).trace(inputs)
        plain = onnx.load_from_string(model)
        for name in traced:
            if name not in {o.name for o in plain.graph.output}:
                plain.graph.output.append(onnx.ValueInfoProto(name=name))
        made = session(plain.SerializeToString(), optimize=False)
        values = dict(zip((o.name for o in made.get_outputs()), run(made, inputs), strict=True))
        for name, value in traced.items():
            if value.dtype == torch.uint8:
                # Float arithmetic may round a code otherwise; axes that were confused would be far off.
                assert value.shape == values[name].shape
                assert (value.int() - values[name].int()).abs().max() <= 1, (example.name, name)


def test_a_transpose_that_merged_into_its_neighbours_is_found_in_them_or_left_out() -> None:
    back = Example("there and back", between(2, lambda x: F.relu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), IMAGE)
    made = quantized(back)
    traced = Tracer(made.artifact()).trace(batch(back, 2, 3))
    assert traced["b/codes"].shape == (2, 4, 7, 7)
    if "permute/codes" in traced:
        assert torch.equal(traced["permute/codes"], traced["a/codes"].permute(0, 2, 3, 1))


def test_codes_that_are_bounded_and_encoded_again_on_their_own_grid_are_the_codes_themselves() -> None:
    example = Example("relu twice", between(2, lambda x: F.relu(F.max_pool2d(F.relu(x), 1))), IMAGE)
    traced = Tracer(quantized(example).artifact()).trace(batch(example, 2, 3))
    codes = [value for name, value in traced.items() if "relu" in name]
    assert len(codes) == 2
    assert torch.equal(*codes)


def test_only_codes_and_outputs_are_traced() -> None:
    example = next(e for e in WHOLE if e.name == "encoder")
    made = quantized(example)
    traced = Tracer(made.artifact()).trace(batch(example, 2, 3))
    outputs = {o.removesuffix("/real") for o in made.graph.outputs}
    assert all(value.dtype == torch.uint8 for name, value in traced.items() if name not in outputs)


def test_operators_are_counted_in_the_optimised_graph() -> None:
    torch.manual_seed(0)
    example = Example(
        "fork",
        lambda: Net(lambda n, x: n.b(n.a(x)) + n.c(n.a(x)), a=CONV[2](3, 6, 1), b=nn.Conv2d(6, 4, 1), c=nn.Conv2d(6, 4, 1)),
        IMAGE,
    )
    assert Tracer(quantized(example).artifact()).operators == {
        "DequantizeLinear": 1,
        "QLinearAdd": 1,
        "QLinearConv": 4,
        "QuantizeLinear": 1,
        "Transpose": 2,
    }
