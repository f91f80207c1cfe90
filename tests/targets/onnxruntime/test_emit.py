"""Files in ONNX Runtime's dialect: valid, free in the batch, named after the model, loadable in every way a user loads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from tests.targets.networks import EXAMPLES, IMAGE, WHOLE, Example, Net, batch, between, convolution, quantized
from torch import Tensor, nn

import exactq
from exactq.errors import TargetError
from exactq.flow import prepare
from exactq.graphs.qdq import CODES
from exactq.targets.onnxruntime.emit import emit, serialized

LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")
ONE_OF_EACH = [pytest.param(several[-1], marks=pytest.mark.slow) for several in EXAMPLES.values()]


def answers(model: bytes, inputs: tuple[Tensor, ...], level: str = "ENABLE_ALL", **entries: str) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.log_severity_level = 4
    for key, value in entries.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}))


def float_file(example: Example) -> tuple[nn.Module, onnx.ModelProto]:
    torch.manual_seed(0)
    model = example.make().eval()
    return model, emit(prepare(model, batch(example, 2, 1)))


@pytest.mark.parametrize("example", [*WHOLE, *ONE_OF_EACH], ids=lambda e: e.name)
def test_a_file_is_valid_and_names_what_the_model_names(example: Example) -> None:
    made = quantized(example)
    model = onnx.load_from_string(made.artifact())
    onnx.checker.check_model(model, full_check=True)
    names = [n.name for n in model.graph.node]
    assert len(set(names)) == len(names)
    assert all(n.name == n.output[0] and not n.doc_string and not n.metadata_props for n in model.graph.node)
    assert not any((model.doc_string, model.graph.doc_string, model.metadata_props))
    assert not any(t.doc_string or t.metadata_props for t in model.graph.initializer)
    tensors = {o for n in model.graph.node for o in n.output} | {t.name for t in model.graph.initializer}
    constants = made.float_graph.constants
    assert {f"{name}{CODES}" for name in made.grids} <= tensors
    codes = {t.name: t for t in model.graph.initializer}
    for name in set(constants) & set(made.grids):
        assert codes[f"{name}{CODES}"].data_type == onnx.TensorProto.INT8
    read = {i for n in model.graph.node for i in n.input} | {o.name for o in model.graph.output}
    assert tensors <= read | {o for n in model.graph.node for o in n.output if o != n.output[0]}
    for value, spec in zip(model.graph.input, made.graph.inputs, strict=True):
        sizes = value.type.tensor_type.shape.dim
        assert value.name == spec.name
        assert (sizes[0].dim_param, [d.dim_value for d in sizes[1:]]) == ("batch", list(spec.shape[1:]))
    assert all(o.type.tensor_type.shape.dim[0].dim_param == "batch" for o in model.graph.output)


@pytest.mark.runtime
@pytest.mark.parametrize("example", WHOLE, ids=lambda e: e.name)
def test_a_file_loads_at_every_level_and_with_exact_weights(example: Example) -> None:
    made = quantized(example, recipe="portable")
    model, inputs = made.artifact(), batch(example, 5, 3)
    wanted = answers(model, inputs)
    assert [w.shape[0] for w in wanted] == [5] * len(wanted)
    grids = [made.grids.get(o.removesuffix("/real")) for o in made.graph.outputs]
    for level in LEVELS:
        for found, best, grid in zip(answers(model, inputs, level), wanted, grids, strict=True):
            assert found.shape == best.shape
            assert grid is not None
            assert np.abs(found - best).max() <= 40 * float(grid.scale)  # the float Q/DQ graph: near, not equal
    if example.integers:
        exact = answers(model, inputs, session__x64quantprecision="1")
        assert all(np.array_equal(a, b) for a, b in zip(exact, wanted, strict=True))


@pytest.mark.runtime
@pytest.mark.parametrize("example", [*WHOLE, *ONE_OF_EACH], ids=lambda e: e.name)
def test_a_float_file_answers_as_torch_does(example: Example) -> None:
    model, file = float_file(example)
    onnx.checker.check_model(file, full_check=True)
    for size in (1, 3):
        inputs = batch(example, size, 3)
        with torch.no_grad():
            wanted = model(*inputs)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for found, best in zip(answers(serialized(file), inputs), wanted, strict=True):
            assert found.shape == best.shape
            # The sums of these layers have at most 512 terms and follow each other at most 20 times: 2·20·512 roundings.
            scale = max(float(best.abs().max()), 1.0)
            assert np.abs(found - best.numpy()).max() <= 2 * 20 * 512 * 2.0**-24 * scale


def pointwise(name: str, **options: Any) -> Callable[[], nn.Module]:
    return between(2, lambda x: getattr(F, name)(x, **options))


def embedded() -> nn.Module:
    return Net(lambda n, i: n.b(n.a(i)), a=nn.Embedding(11, 6), b=nn.Linear(6, 3))


OUTSIDE = {
    **{
        name: Example(name, pointwise(name, **options), IMAGE)
        for name, options in {
            "gelu": {"approximate": "tanh"},
            "silu": {},
            "hardswish": {},
            "softplus": {},
            "mish": {},
            "elu": {},
            "softmax": {"dim": 1},
            "log_softmax": {"dim": 1},
        }.items()
    },
    "layer_norm": Example("layer_norm", between(2, lambda x: F.layer_norm(x, (7,))), IMAGE),
    "group_norm": Example(
        "group_norm",
        lambda: Net(lambda n, x: n.b(n.g(n.a(x))), a=nn.Conv2d(3, 6, 1), g=nn.GroupNorm(2, 6), b=nn.Conv2d(6, 4, 1)),
        IMAGE,
    ),
    "upsample": Example("upsample", between(2, lambda x: F.interpolate(x, scale_factor=2)), IMAGE),
    "bilinear": Example("bilinear", between(2, lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")), IMAGE),
    "einsum": Example("einsum", between(2, lambda x: torch.einsum("ncij,nckj->ncik", x, x)), IMAGE),
    "pixel_shuffle": Example(
        "pixel_shuffle",
        lambda: Net(lambda n, x: n.b(F.pixel_shuffle(n.a(x), 2)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(2, 4, 1)),
        IMAGE,
    ),
    "where": Example("where", between(2, lambda x: torch.where(x > 0, x, x * 0.1)), IMAGE),
    "clamp between tensors": Example(
        "clamp", between(2, lambda x: torch.clamp(x, x.mean((1, 2, 3), True), x.amax((1, 2, 3), True))), IMAGE
    ),
    "floor division": Example("div", between(2, lambda x: torch.div(x, 0.3, rounding_mode="floor")), IMAGE),
    "split": Example(
        "split",
        between(2, lambda x: torch.cat([p * n for n, p in enumerate(x.unbind(1), 1)], 1).unflatten(1, (6, 7)), 6),
        IMAGE,
    ),
    "topk": Example("topk", between(2, lambda x: torch.topk(x, 4, 1)[0], 4), IMAGE),
    "transposed convolution": Example(
        "conv_transpose", lambda: Net(lambda n, x: n.b(n.a(x)), a=nn.ConvTranspose2d(3, 6, 3, 2), b=nn.Conv2d(6, 4, 1)), IMAGE
    ),
}


@pytest.mark.runtime
@pytest.mark.slow
@pytest.mark.parametrize("example", OUTSIDE.values(), ids=OUTSIDE)
def test_an_operator_outside_the_table_is_written_by_torch_and_what_follows_is_verified(example: Example) -> None:
    made = quantized(example)
    file = made.artifact()
    assert not any(place in file for place in (b"pkg.torch", b".py"))
    verdict = exactq.verify(made, [batch(example, 16, 3)])
    assert verdict.equal, verdict
    assert verdict.tensors[-1].name == verdict.outputs[-1].name
    model, written = float_file(example)
    inputs = batch(example, 3, 3)
    with torch.no_grad():
        wanted = model(*inputs)
    (found,) = answers(serialized(written), inputs)
    assert np.abs(found - wanted.numpy()).max() <= 1e-4 * max(1.0, float(wanted.abs().max()))


@pytest.mark.runtime
def test_an_index_input_reaches_an_embedding() -> None:
    torch.manual_seed(0)
    indices = torch.arange(8).reshape(2, 4) % 11
    made = exactq.quantize(embedded().eval(), (indices,), calibration=[(indices,)])
    verdict = exactq.verify(made, [(indices,)])
    assert verdict.mismatches == 0


def test_what_onnx_cannot_express_is_refused_by_value_and_operator() -> None:
    model = between(2, lambda x: torch.linalg.matrix_exp(x))().eval()
    with pytest.raises(TargetError, match=r"`linalg_matrix_exp`: ONNX cannot express `aten.linalg_matrix_exp`") as error:
        emit(prepare(model, (torch.randn(2, 3, 7, 7),)))
    assert {"\n", "\x1b"}.isdisjoint(str(error.value))


def test_a_size_as_a_value_is_refused_by_name() -> None:
    model = nn.LSTM(10, 6, batch_first=True).eval()
    with pytest.raises(TargetError, match=r"`sym_size`: ONNX cannot express `aten.sym_size`"):
        emit(prepare(model, (torch.randn(2, 4, 10),)))


def test_every_result_of_an_operator_can_be_an_output() -> None:
    example = Example("topk", lambda: Net(lambda n, x: torch.topk(n.a(x).flatten(1), 3), a=nn.Conv2d(3, 6, 3)), IMAGE)
    made = quantized(example)
    values, places = answers(made.artifact(), batch(example, 4, 3))
    assert (values.shape, places.shape, places.dtype) == ((4, 3), (4, 3), np.int64)


def test_each_dequantize_node_has_a_zero_point_of_its_own() -> None:
    """Sharing one makes ONNX Runtime 1.31 refuse the file under session.x64quantprecision=1."""
    model = onnx.load_from_string(quantized(WHOLE[0]).artifact())
    zeros = [n.input[2] for n in model.graph.node if n.op_type == "DequantizeLinear"]
    assert len(set(zeros)) == len(zeros)


def test_two_constants_of_one_name_are_never_confused() -> None:
    from exactq.targets.onnxruntime.operators import Sheet

    sheet = Sheet()
    sheet.constant("a", np.float32(1))
    assert sheet.constant("a", np.float32(1)) == "a"
    with pytest.raises(AssertionError, match="two different constants are named 'a'"):
        sheet.constant("a", np.float32(2))


@pytest.mark.runtime
def test_a_model_without_a_free_batch_is_written_with_fixed_sizes() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).reshape(2, 4 * 25)

    torch.manual_seed(0)
    made = exactq.quantize(Fixed().eval(), (torch.randn(2, 3, 7, 7),), calibration=[(torch.randn(2, 3, 7, 7),)])
    model = onnx.load_from_string(made.artifact())
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 7, 7]
    assert exactq.verify(made, [(torch.randn(2, 3, 7, 7),)]).equal


def test_a_convolution_keeps_its_weights_as_eight_bits_and_its_bias_as_thirty_two() -> None:
    made = quantized(Example("conv", convolution(2, kernel_size=3), IMAGE))
    kinds = {t.name: t.data_type for t in onnx.load_from_string(made.artifact()).graph.initializer}
    assert kinds["b.weight/codes"] == onnx.TensorProto.INT8
    assert kinds["b.bias"] == onnx.TensorProto.INT32
