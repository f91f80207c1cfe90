"""Three models of PyTorch's issue tracker whose outputs jump when they are converted, built from what the issues describe.

Each function gives the prepared model as it was trained, what `torch.ao.quantization.convert` makes of it, and inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Case:
    """`prepared` is the trained model, `converted` PyTorch's own conversion of it, `inputs` the case's own inputs."""

    name: str
    engine: str
    prepared: nn.Module
    converted: nn.Module
    inputs: tuple[Tensor, ...]


@contextmanager
def on_engine(name: str) -> Iterator[None]:
    """A context in which PyTorch's quantized engine is `name`, on one thread."""
    before, threads = torch.backends.quantized.engine, torch.get_num_threads()
    torch.backends.quantized.engine = name
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
        torch.set_num_threads(threads)


def _case(name: str, engine: str, prepared: nn.Module, inputs: tuple[Tensor, ...]) -> Case:
    return Case(name, engine, prepared, tq.convert(copy.deepcopy(prepared)), inputs)


class Pointwise(nn.Module):
    """One 1x1 convolution between stubs."""

    def __init__(self, *, bias: bool, relu: bool) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.conv = nn.Conv2d(3, 3, 1, bias=bias)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.relu(self.conv(self.quant(x))))


def ramp(engine: str) -> Case:
    """PyTorch #95785: the identity as a 1x1 convolution. QAT gives 0..255, the converted model repeats 127 and ends at 254."""
    with on_engine(engine):
        model = Pointwise(bias=False, relu=True)
        with torch.no_grad():
            model.conv.weight.copy_(torch.eye(3).reshape(3, 3, 1, 1))
        model = tq.fuse_modules(model.eval(), [["conv", "relu"]]).train()
        observer = tq.MovingAverageMinMaxObserver
        activation = tq.FusedMovingAvgObsFakeQuantize.with_args(
            observer=observer, quant_min=0, quant_max=255, dtype=torch.quint8, qscheme=torch.per_tensor_affine
        )
        model.qconfig = tq.QConfig(activation, tq.default_fused_wt_fake_quant)
        prepared = tq.prepare_qat(model).train()
        x = torch.arange(256).repeat(1, 3, 4, 1) / 255.0
        with torch.no_grad():
            prepared(x)
        prepared.eval().apply(tq.disable_observer)
        return _case("#95785", engine, prepared, (x,))


def pointwise(engine: str, *, version: int = 1) -> Case:
    """PyTorch #88800: a 1x1 convolution of an image. 15 to 30 % of the outputs differ after `convert`."""
    with on_engine(engine):
        torch.manual_seed(0)
        x = torch.rand(1, 3, 224, 224)
        model = Pointwise(bias=True, relu=False).train()
        model.qconfig = tq.get_default_qat_qconfig(engine, version)
        prepared = tq.prepare_qat(model)
        with torch.no_grad():
            for _ in range(10):
                prepared(x)
        prepared.eval().apply(tq.disable_observer)
        return _case("#88800", engine, prepared, (x,))


class Spiral(nn.Module):
    """A classifier of points in the plane: 2, 64, 64, 1."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.fc1, self.relu1 = nn.Linear(2, 64), nn.ReLU()
        self.fc2, self.relu2 = nn.Linear(64, 64), nn.ReLU()
        self.fc3 = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.fc1(self.quant(x)))
        return self.dequant(self.fc3(self.relu2(self.fc2(x))))


def spiral(engine: str, *, version: int = 1, steps: int = 150) -> Case:
    """PyTorch #108639: two spirals of 3000 points each, trained with QAT."""
    rng = np.random.RandomState(0)
    angle = rng.rand(6000) * 10.0
    noise = rng.randn(6000, 2) * np.sqrt(0.003)
    points = np.stack([0.1 * angle * np.cos(angle), 0.1 * angle * np.sin(angle)], 1) + noise
    points[3000:] *= -1
    x = torch.tensor(points, dtype=torch.float32)
    y = (torch.arange(6000) < 3000).float()[:, None]
    with on_engine(engine):
        torch.manual_seed(0)
        model = tq.fuse_modules_qat(Spiral().train(), [["fc1", "relu1"], ["fc2", "relu2"]])
        model.qconfig = tq.get_default_qat_qconfig(engine, version)
        prepared = tq.prepare_qat(model)
        optimizer = torch.optim.Adam(prepared.parameters(), 3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(prepared(x), y).backward()
            optimizer.step()
        prepared.eval().apply(tq.disable_observer)
        return _case("#108639", engine, prepared, (x,))
