"""Whole files, from PyTorch's exporter and as older tools wrote them: read, quantized, and every integer as predicted."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from tests.targets.onnxruntime.fusion import only_integers
from torch import Tensor, nn

import exactq
from exactq.flow import prepare, quantize_graph, verify
from exactq.graphs.programs import example_inputs
from exactq.models.catalog import MODELS, build
from exactq.quantized import Quantized

from .cases import ints
from .files import imported, node, proto, random

pytestmark = pytest.mark.runtime


def exported(model: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> Path:
    """The file that `torch.onnx.export` makes, its batch fixed to that of the inputs."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(model.eval(), inputs, path, dynamo=True, verbose=False)
    finally:
        logging.disable(level)
    return path


def quantized(model: nn.Module) -> Quantized:
    """The file's model quantized and found equal to the runtime's integers."""
    graph = model.graph
    assert all(i.batch for i in graph.inputs), model.note  # type: ignore[union-attr]
    made = quantize_graph(
        prepare(model, example_inputs(graph, batch=2)),  # type: ignore[arg-type]
        calibration=[example_inputs(graph, batch=4, seed=n) for n in range(3)],  # type: ignore[arg-type]
    )
    verdict = verify(made, [example_inputs(graph, batch=4, seed=9)], inputs=4)  # type: ignore[arg-type]
    assert verdict.equal
    assert verdict.elements > 0
    return made


def fused(made: Quantized) -> None:
    only_integers(made.target.open(made.artifact()).operators, made)


class TwoByTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(6, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.left(a) + self.right(b))
        return self.last(h), h


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.up, self.c = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 4, 3, padding=1)
        self.d = nn.Conv2d(20, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        c = F.relu6(self.c(torch.cat([self.up(b), a], 1)))
        wide = F.interpolate(b, scale_factor=2, mode="nearest")
        return self.d(torch.cat([F.interpolate(c, scale_factor=1.0), wide], 1))


MADE = {
    "mlp": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4), nn.Hardswish()),
        ((1, 2, 16),),
    ),
    "two by two": (TwoByTwo, ((1, 6), (1, 5))),
    "u-net": (UNet, ((1, 3, 8, 8),)),
    "simplecnn": (lambda: build(MODELS["simplecnn"], seed=0), ((1, 1, 8, 8),)),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "two by two")) for name in MADE])
def test_a_file_of_pytorch_is_the_model_it_was_made_of(name: str, tmp_path: Path) -> None:
    make, shapes = MADE[name]
    torch.manual_seed(0)
    net = make().eval()
    made = exactq.read(exported(net, tuple(torch.randn(s) for s in shapes), tmp_path / "m.onnx"))
    some = [torch.randn(3, *s[1:]) for s in shapes]
    with torch.no_grad():
        for ours, theirs in zip(made(*some), net(*some), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    of_file = quantized(made)
    if name in ("two by two", "simplecnn"):
        fused(of_file)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_a_file_of_a_built_in_fuses_as_the_built_in_does(name: str, tmp_path: Path) -> None:
    net = build(MODELS[name], shape=(3, 32, 32), classes=10, seed=0).eval()
    made = exactq.read(exported(net, (torch.randn(1, 3, 32, 32),), tmp_path / "m.onnx"))
    fused(quantized(made))


def conv_block(name: str, x: str, y: str, **attributes: object) -> list[onnx.NodeProto]:
    """Convolution, normalisation and ReLU 6 as exporters wrote them up to opset 10."""
    return [
        node("Conv", f"{x} {name}.w", f"{name}.c", kernel_shape=[3, 3], **attributes),
        node("BatchNormalization", f"{name}.c {name}.g {name}.b {name}.m {name}.v", f"{name}.n", epsilon=1e-3),
        node("Clip", f"{name}.n", y, min=0.0, max=6.0),
    ]


def block_constants(name: str, channels_in: int, channels_out: int) -> dict[str, np.ndarray]:
    return {
        f"{name}.w": random(channels_out, channels_in, 3, 3) / 4,
        f"{name}.g": random(channels_out, seed=1, positive=True),
        f"{name}.b": random(channels_out, seed=2),
        f"{name}.m": random(channels_out, seed=3),
        f"{name}.v": random(channels_out, seed=4, positive=True),
    }


def test_a_network_of_opset_9_with_same_padding_and_a_reshape_for_one_sample_fuses() -> None:
    nodes = [
        *conv_block("one", "input.1", "11", auto_pad="SAME_UPPER", strides=[2, 2]),
        node("MaxPool", "11", "12", kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_UPPER"),
        *conv_block("two", "12", "13", pads=[1, 1, 1, 1]),
        node("Add", "12 13", "14"),
        node("GlobalAveragePool", "14", "15"),
        node("Reshape", "15 to", "16"),
        node("MatMul", "16 fc.w", "17"),
        node("Add", "17 fc.b", "logits"),
    ]
    constants = block_constants("one", 3, 8) | block_constants("two", 8, 8)
    constants |= {"to": ints(1, 8), "fc.w": random(8, 5), "fc.b": random(5)}
    made = quantized(imported(proto(nodes, {"input.1": (1, 3, 16, 16)}, constants, opset=9)))
    fused(made)
    assert made.float_graph.outputs == ("logits",)
    assert [i.name for i in made.float_graph.inputs] == ["input.1"]
    assert {"12", "14", "15", "one.w", "fc.w", "fc.b"} <= set(made.float_graph.names.values())


def test_a_network_of_channels_last_between_transposes_fuses() -> None:
    nodes = [
        node("Transpose", "image", "first", perm=[0, 3, 1, 2]),
        node("Pad", "first sides", "padded"),
        node("Conv", "padded w b", "c", strides=[2, 2]),
        node("Relu", "c", "r"),
        node("Transpose", "r", "last", perm=[0, 2, 3, 1]),
        node("Reshape", "last to", "flat"),
        node("MatMul", "flat fc", "m"),
        node("Add", "m fcb", "a"),
        node("Relu", "a", "y"),
    ]
    constants = {
        "sides": ints(0, 0, 0, 0, 0, 0, 1, 1),
        "w": random(6, 3, 3, 3),
        "b": random(6),
        "to": ints(-1, 96),
        "fc": random(96, 4),
        "fcb": random(4),
    }
    for batch in (1, "unk__0"):
        made = quantized(imported(proto(nodes, {"image": (batch, 8, 8, 3)}, constants)))
        fused(made)
