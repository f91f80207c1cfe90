"""A model becomes a graph with the model's own names and bits, and stays as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exactq.errors import DataError, ModelError
from exactq.graphs.graph import Graph, op_name
from exactq.graphs.programs import program
from exactq.sources.capture import capture
from exactq.traces import walk


class Block(nn.Module):
    def __init__(self, width: int, *, down: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)) if down else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.layer1 = nn.Sequential(Block(4, down=True), Block(4))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.layer1(self.relu(self.conv1(x)))), 1))


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))
        self.heads = nn.ModuleDict({"a": nn.ReLU(), "b": nn.Sigmoid()})

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        for conv in self.convs:
            x = conv(x)
        return self.heads["b"](x), {"a": self.heads["a"](x), "x": x}


class F_(nn.Module):  # noqa: N801, RUF100
    """A function as a model."""

    def __init__(self, f: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.f = f
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *x: Tensor) -> Any:
        return self.f(self, *x)


IMAGE, SEQUENCE = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 8)

# model, inputs, the names of its calls, of its outputs.
NAMED: dict[str, tuple[Callable[[], nn.Module], Sequence[Tensor], list[str], tuple[str, ...]]] = {
    "resnet": (
        ResNet,
        (IMAGE,),
        [
            "conv1",
            "relu",
            "layer1.0.conv1",
            "layer1.0.bn1",
            "layer1.0.relu",
            "layer1.0.downsample.0",
            "layer1.0.downsample.1",
            "layer1.0.add",
            "layer1.0.relu_1",
            "layer1.1.conv1",
            "layer1.1.bn1",
            "layer1.1.relu",
            "layer1.1.add",
            "layer1.1.relu_1",
            "avgpool",
            "reshape",
            "fc",
        ],
        ("fc",),
    ),
    "lists, dicts, nested outputs": (
        Lists,
        (IMAGE,),
        ["convs.0", "convs.1", "heads.b", "heads.a"],
        ("heads.b", "heads.a", "convs.1"),
    ),
    "functions only": (
        lambda: F_(lambda s, x: F.relu(x * 2) + F.relu(-x)),
        (IMAGE,),
        ["mul", "relu", "neg", "relu_1", "add"],
        ("add",),
    ),
    "a module twice": (
        lambda: F_(lambda s, x: s.conv(s.conv(x)), conv=nn.Conv2d(3, 3, 1)),
        (IMAGE,),
        ["conv", "conv_1"],
        ("conv_1",),
    ),
    "several inputs and outputs": (
        lambda: F_(lambda s, x, y: (s.a(x), [s.b(y), x]), a=nn.Conv2d(3, 2, 1), b=nn.Linear(8, 2)),
        (IMAGE, SEQUENCE),
        ["a", "b"],
        ("a", "b", "x_0"),
    ),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 2, 2)), (IMAGE,), ["0"], ("0",)),
    "the model itself is the layer": (lambda: nn.Conv2d(3, 2, 1), (IMAGE,), ["conv2d"], ("conv2d",)),
    "lstm": (
        lambda: F_(lambda s, x: s.lstm(x)[0], lstm=nn.LSTM(8, 4, batch_first=True)),
        (SEQUENCE,),
        ["sym_size", "lstm.zeros", "lstm.zeros_1", "lstm", "lstm.0"],
        ("lstm.0",),
    ),
    "split, chunk and unbind are slices": (
        lambda: F_(lambda s, x: (*x.chunk(2, 1), x.split([1, 2], 1)[1], x.unbind(2)[-1])),
        (IMAGE,),
        ["slice", "slice_1", "slice_2", "select"],
        ("slice", "slice_1", "slice_2", "select"),
    ),
    "a pool whose indices nobody reads": (
        lambda: F_(lambda s, x: F.max_pool2d_with_indices(x, 2)[0]),
        (IMAGE,),
        ["max_pool2d"],
        ("max_pool2d",),
    ),
    "in place": (
        lambda: F_(lambda s, x: x.clone().mul_(2).relu_()),
        (IMAGE,),
        ["clone", "mul", "relu"],
        ("relu",),
    ),
    "None among the outputs": (
        lambda: F_(lambda s, x: s.m(x, x, x, need_weights=False)[::-1], m=nn.MultiheadAttention(8, 2)),
        (SEQUENCE,),
        [],
        ("m.reshape_8",),
    ),
}


@pytest.mark.parametrize("what", NAMED)
def test_values_have_the_names_of_the_modules_and_the_models_bits(what: str) -> None:
    torch.manual_seed(0)
    make, inputs, calls, outputs = NAMED[what]
    model = make()
    graph = capture(model, inputs)
    assert [graph.name(n) for n in graph.calls] == calls or not calls
    assert graph.outputs == outputs
    expected = [x for x in torch.utils._pytree.tree_leaves(model.eval()(*inputs)) if x is not None]
    for value, wanted in zip(walk(program(graph), tuple(inputs)), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6)  # attention has an own fast path in eager mode


def test_a_transformer_layer_and_its_batch_are_free() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    graph = capture(layer, (SEQUENCE,))
    names = [graph.name(n) for n in graph.calls]
    assert [n for n in names if "." not in n] == [
        "dropout1", "add", "norm1", "linear1", "relu", "dropout", "linear2", "dropout2", "add_1", "norm2",
    ]  # fmt: skip
    assert "self_attn.linear" in names
    assert not [n for n in names if "sym_size" in n]  # every size is a literal or -1
    x = torch.randn(7, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(walk(program(graph), (x,))[0], layer(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_is_free_whatever_the_example_has(batch: int) -> None:
    graph = capture(ResNet(), (torch.randn(batch, 3, 8, 8),))
    assert (graph.inputs[0].shape, graph.inputs[0].batch) == ((batch, 3, 8, 8), True)
    assert graph.module(torch.randn(9, 3, 8, 8))[0].shape == (9, 2)


def test_a_batch_that_the_model_fixes_is_fixed() -> None:
    graph = capture(F_(lambda s, x: x.reshape(2, -1).relu()), (IMAGE,))
    assert not graph.inputs[0].batch
    assert not capture(nn.ReLU(), (IMAGE,), batch=False).inputs[0].batch
    assert not capture(nn.ReLU(), (torch.tensor(1.0),)).inputs[0].batch


class Keywords(nn.Module):
    def forward(self, *, tokens: Tensor, mask: Tensor | None = None, scale: Tensor) -> dict[str, Any]:
        return {"logits": tokens * scale, "state": [mask, None, 3]}


class AnyKeywords(nn.Module):
    def forward(self, *, tokens: Tensor, mask: Tensor | None = None, **more: Tensor) -> dict[str, Any]:
        return {"logits": tokens * more["scale"], "state": [mask, None, 3]}


@pytest.mark.parametrize("model", [Keywords(), AnyKeywords()])
def test_keyword_arguments_and_dictionaries(model: nn.Module) -> None:
    inputs = {"scale": torch.full((2, 4), 2.0), "mask": torch.ones(2, 4), "tokens": torch.ones(2, 4)}
    graph = capture(model, inputs)
    assert {i.name for i in graph.inputs} == {"tokens", "mask", "scale"}
    assert graph.outputs == ("mul", "mask")
    assert {i.batch for i in graph.inputs} == {isinstance(model, Keywords)}  # below **more torch allows no free sizes
    (logits, mask) = walk(program(graph), tuple(inputs[i.name] for i in graph.inputs))
    assert logits.tolist() == [[2.0] * 4] * 2
    assert mask is inputs["mask"]


def test_literals_inside_forward_are_named_after_their_module() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)

    graph = capture(nn.Sequential(Scaled(), Scaled()), (IMAGE,))
    assert sorted(graph.constants) == ["0.constant", "1.constant"]


def test_a_tensor_that_two_modules_share_is_one_constant() -> None:
    a, b = nn.Linear(8, 8), nn.Linear(8, 8)
    b.weight = a.weight
    graph = capture(nn.Sequential(a, b), (SEQUENCE,))
    assert sorted(graph.constants) == ["0.bias", "0.weight", "1.bias"]
    assert [graph.name(n.args[1]) for n in graph.calls] == ["0.weight", "0.weight"]


def test_the_model_stays_as_it_was_and_the_graph_does_not_follow_it() -> None:
    torch.manual_seed(0)
    model = ResNet()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)  # noqa: FBT003, RUF100
    modes = {n: m.training for n, m in model.named_modules()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = {n: p.requires_grad for n, p in model.named_parameters()}
    x = torch.randn(1, 3, 8, 8)
    attributes = set(vars(x))
    graph = capture(model, (x,))
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == gradients
    assert set(vars(x)) == attributes
    with torch.no_grad():
        model.fc.weight.zero_()
    assert torch.equal(graph.constants["fc.weight"], state["fc.weight"])


def test_the_mode_comes_back_after_a_failure_too() -> None:
    model = F_(lambda s, x: x @ x, drop=nn.Dropout())
    with pytest.raises(DataError):
        capture(model, (torch.randn(2, 3),))
    assert model.training
    assert model.drop.training


def test_nothing_of_this_machine_stays_in_the_graph() -> None:
    graph = capture(ResNet(), (IMAGE,))
    assert all(not n.meta for n in graph.module.graph.nodes)
    assert "File" not in graph.module.code
    assert __file__ not in graph.module.code


def test_batch_norm_is_one_operator() -> None:
    for norm in (nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, track_running_stats=False)):
        graph = capture(nn.Sequential(norm), (IMAGE,))
        assert [(graph.name(n), op_name(n)) for n in graph.calls] == [("0", "aten.batch_norm")]


def decide(_: nn.Module, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def test_control_flow_on_data_is_refused_in_one_line_and_in_silence(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with pytest.raises(ModelError) as error:
        capture(F_(decide), (IMAGE,))
    message = str(error.value)
    assert message.startswith("the model cannot be captured: its control flow depends on the data (`if`, `while`")
    assert f"test_capture.py, line {decide.__code__.co_firstlineno + 1})" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.randn(2, 4),), "the model refuses inputs of shape (2, 4): "),
        (([torch.randn(2, 3)],), "input 0 is of type list: the model's inputs have to be tensors, without nesting"),
        ({"x": 3}, "input 'x' is of type int"),
    ],
)
def test_inputs_that_the_model_refuses_are_an_error_of_the_data(inputs: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        capture(nn.Linear(3, 2), inputs)
    assert str(error.value).startswith(message)


def test_parameters_have_to_be_finite_and_buffers_may_mask_with_infinity() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[1, 2] = float("nan")
    with pytest.raises(ModelError, match=r"`0.weight` has a NaN at index \(1, 2\) \(1 of 6 values are not finite\)"):
        capture(nn.Sequential(layer), (torch.randn(2, 3),))
    with torch.no_grad():
        layer.weight[1, 2] = float("-inf")
    with pytest.raises(ModelError, match=r"`0.weight` has an infinity"):
        capture(nn.Sequential(layer), (torch.randn(2, 3),))
    masked = F_(lambda s, x: x + s.mask)
    masked.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    assert list(capture(masked, (torch.randn(2, 2),)).constants) == ["mask"]


def test_a_model_that_writes_on_its_input_is_a_function_all_the_same() -> None:
    x = torch.zeros(2, 3)
    graph = capture(F_(lambda s, x: x.add_(1)), (x,))
    assert walk(program(graph), (x,))[0].tolist() == [[1.0] * 3] * 2
    assert x.sum() == 0


def test_a_model_with_state_is_refused() -> None:
    def count(model: Any, x: Tensor) -> Tensor:
        model.calls += 1
        return x * 2

    model = F_(count)
    model.register_buffer("calls", torch.zeros(()))
    with pytest.raises(ModelError, match="the model changes its own 'calls' at each call"):
        capture(model, (IMAGE,))
    assert model.calls == 0


def test_an_operator_that_torch_does_not_know_passes_through() -> None:
    @torch.library.custom_op("exactq_tests::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)
    graph = capture(F_(lambda s, x: twice(x)), (IMAGE,))
    assert [op_name(n) for n in graph.calls] == ["exactq_tests.twice"]


def test_a_model_without_a_tensor_to_return_is_refused() -> None:
    with pytest.raises(ModelError, match="the model returns no tensor"):
        capture(F_(lambda s, x: None), (IMAGE,))


def test_sizes_that_depend_on_the_batch_are_minus_one() -> None:
    model = F_(lambda s, x: (x.view(x.size(0) * 3, -1), x.reshape(x.shape[0], -1), x.mean(1, keepdim=True).expand_as(x)))
    graph = capture(model, (IMAGE,))
    assert {graph.name(n): n.args[1] for n in graph.calls if op_name(n) in ("aten.view", "aten.expand")} == {
        "reshape": [-1, 64],
        "reshape_1": [-1, 192],
        "expand": [-1, 3, 8, 8],
    }


def capture_of_guarded() -> Graph:
    return capture(F_(lambda s, x: x.to(torch.float32).float().half()), (IMAGE,))


def test_torchs_guards_are_gone() -> None:
    assert [op_name(n) for n in capture_of_guarded().calls] == ["aten._to_copy"]
