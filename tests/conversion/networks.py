"""Small networks that torch.ao quantizes in eager and FX mode, with what real ones are made of."""

from __future__ import annotations

import copy

import torch
import torch.ao.quantization as tq
from examples.pytorch_issues import on_engine
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

SHAPE = (3, 16, 16)


class Residual(nn.Module):
    """Two convolutions, normalized, and a shortcut around them."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(out), nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.down = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()
        self.join = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.join.add_relu(y, self.down(x))


class Network(nn.Module):
    """A stem, two residual blocks, a depthwise convolution, hardswish, a concatenation, pools and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.stem, self.stem_relu, self.maxpool = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.layer = nn.Sequential(Residual(8, 8, 1), Residual(8, 16, 2))
        self.depthwise, self.swish, self.cat = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Hardswish(), FloatFunctional()
        self.avgpool, self.dropout, self.fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.stem_relu(self.stem(self.quant(x))))
        x = self.depthwise(self.layer(x))
        x = self.cat.cat([self.swish(x), x], 1)
        return self.dequant(self.fc(self.dropout(torch.flatten(self.avgpool(x), 1))))


def prepared(mode: str, engine: str, *, trained: bool, version: int = 1) -> nn.Module:
    """The network prepared for an engine, calibrated on four batches; `trained` with fake quantization."""
    torch.manual_seed(0)
    model = Network().train()
    with torch.no_grad(), on_engine(engine):
        for _ in range(2):
            model(images(4) * 1.5 + 0.2)
        model = model.train() if trained else model.eval()
        if mode == "eager":
            fuse = tq.fuse_modules_qat if trained else tq.fuse_modules
            blocks = [["conv1", "bn1", "relu1"], ["conv2", "bn2"]]
            for n in (0, 1):
                fuse(model, [[f"layer.{n}.{name}" for name in group] for group in blocks], inplace=True)
            fuse(model, [["stem", "stem_relu"]], inplace=True)
            model.qconfig = tq.get_default_qat_qconfig(engine, version) if trained else tq.get_default_qconfig(engine)
            made = tq.prepare_qat(model) if trained else tq.prepare(model)
        else:
            mapping = tq.get_default_qat_qconfig_mapping(engine, version) if trained else tq.get_default_qconfig_mapping(engine)
            made = (prepare_qat_fx if trained else prepare_fx)(model, mapping, (images(1),))
        for n in range(4):
            made(images(4, seed=n))
        made.eval()
        if trained:
            made.apply(tq.disable_observer)
    return made


def converted(mode: str, engine: str, model: nn.Module) -> nn.Module:
    """What PyTorch makes of a prepared network."""
    with on_engine(engine):
        own = copy.deepcopy(model)
        return tq.convert(own) if mode == "eager" else convert_fx(own)


def images(count: int, seed: int = 0) -> Tensor:
    """Normally distributed images."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
