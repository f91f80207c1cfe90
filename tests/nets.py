"""Small networks for whole-pipeline tests, their data, and what a plan's edit leads to: an equal model or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exactq.flow import plan_graph, prepare, quantize_graph
from exactq.graphs.graph import Graph
from exactq.plans.plan import Edge, Plan, Slot
from exactq.quantized import Quantized
from exactq.verification import Verdict, verify

Inputs = tuple[Tensor, ...]
IMAGE = (torch.zeros(2, 3, 8, 8),)


class Net(nn.Module):
    """A network written as one function of itself and its inputs."""

    def __init__(self, f: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.f = f
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.f(self, *inputs)


def net(f: Callable[..., Any], **parts: nn.Module) -> Net:
    return Net(f, **parts).eval()


def conv(channels_in: int = 3, channels_out: int = 3, **options: Any) -> nn.Conv2d:
    torch.manual_seed(channels_in * 7 + channels_out)
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, **options)


def data(inputs: Sequence[Tensor], batches: int = 2, size: int = 8, seed: int = 1) -> list[Inputs]:
    generator = torch.Generator().manual_seed(seed)

    def sample(x: Tensor) -> Tensor:
        shape = (size, *x.shape[1:])
        real = x.is_floating_point()
        return torch.randn(shape, generator=generator) if real else torch.randint(0, 9, shape, generator=generator)

    return [tuple(sample(x) for x in inputs) for _ in range(batches)]


@cache
def graph_of(name: str) -> Graph:
    model, inputs = NETS[name]
    return prepare(model, inputs)


@cache
def plan_of(name: str, target: str = "onnxruntime") -> Plan:
    return plan_graph(graph_of(name), target=target)


def edited(plan: Plan, slots: Mapping[str, Slot] | None = None, edges: Mapping[Edge, Slot] | None = None) -> Plan:
    return replace(plan, slots={**plan.slots, **(slots or {})}, edges={**plan.edges, **(edges or {})})


def quantized(name: str, plan: Plan | None = None) -> Quantized:
    return _planned(name) if plan is None else quantize_graph(graph_of(name), calibration=data(NETS[name][1]), plan=plan)


@cache
def _planned(name: str) -> Quantized:
    return quantize_graph(graph_of(name), calibration=data(NETS[name][1]), plan=plan_of(name))


def verified(made: Quantized, inputs: Sequence[Tensor]) -> Verdict:
    """The verdict on a few inputs, which has to be that nothing differs."""
    verdict = verify(made, data(inputs, 1, seed=5))
    differ = [(t.name, t.mismatches, t.elements) for t in (*verdict.tensors, *verdict.outputs) if t.mismatches]
    assert verdict.mismatches == 0, differ
    return verdict


def _twice(self: Any, x: Tensor) -> Tensor:
    return self.c(F.relu(self.c(x)))


def _residual(self: Any, x: Tensor) -> Tensor:
    y = F.relu(self.c(x))
    return F.relu(self.b(F.relu(self.a(y))) + y)


def _both(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = F.relu(self.a(x))
    return y, self.b(y)


def _classifier(self: Any, x: Tensor) -> Tensor:
    y = F.adaptive_avg_pool2d(F.max_pool2d(F.relu(self.c(x)), 2), 1)
    return self.fc(y.flatten(1))


def _shared_weight(self: Any, x: Tensor) -> Tensor:
    return F.conv2d(F.relu(F.conv2d(x, self.a.weight, self.a.bias, padding=1)), self.a.weight, self.b.bias, padding=1)


def _shared_bias(self: Any, x: Tensor) -> Tensor:
    return F.conv2d(F.relu(F.conv2d(x, self.a.weight, self.a.bias, padding=1)), self.b.weight, self.a.bias, padding=1)


def _addition(self: Any, x: Tensor) -> Tensor:
    y = self.c(x)
    return self.d(y + y)


def _two(self: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return self.a(x) + self.b(y), F.relu(self.b(y))


def _decoded(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return self.b(x), x[:, :, :3, :3].unsqueeze(1) * self.b.weight


def _filled(layer: nn.Conv2d, *, weight: float | None = None, bias: float | None = None) -> nn.Conv2d:
    with torch.no_grad():
        for tensor, value in ((layer.weight, weight), (layer.bias, bias)):
            if value is not None and tensor is not None:
                tensor.fill_(value)
    return layer


SHORT = ("residual", "one weight, two biases", "output is read inside", "clamp")
"""The nets that the short run looks at where each takes long."""

NETS: dict[str, tuple[nn.Module, Inputs]] = {
    "classifier": (net(_classifier, c=conv(3, 4), fc=nn.Linear(4, 5)), IMAGE),
    "without biases": (net(_classifier, c=conv(3, 4, bias=False), fc=nn.Linear(4, 5, bias=False)), IMAGE),
    "residual": (net(_residual, a=conv(), b=conv(3, 3), c=conv()), IMAGE),
    "one layer twice": (net(_twice, c=conv()), IMAGE),
    "one layer twice without bias": (net(_twice, c=conv(bias=False)), IMAGE),
    "one layer twice on one value": (net(lambda s, x: s.c(x) + F.relu(s.c(x)), c=conv()), IMAGE),
    "one weight, two biases": (net(_shared_weight, a=conv(), b=conv()), IMAGE),
    "one bias, two weights": (net(_shared_bias, a=conv(), b=conv()), IMAGE),
    "a value added to itself": (net(_addition, c=conv(), d=conv()), IMAGE),
    "input is output": (net(lambda s, x: (x, s.c(x)), c=conv()), IMAGE),
    "output is read inside": (net(_both, a=conv(), b=conv()), IMAGE),
    "two inputs, two outputs": (net(_two, a=conv(), b=conv()), (IMAGE[0], IMAGE[0])),
    "one output twice": (net(lambda s, x: (lambda y: (y, y))(s.b(x)), b=conv()), IMAGE),
    "float island": (net(lambda s, x: s.b(torch.tanh(s.a(x))), a=conv(), b=conv()), IMAGE),
    "sigmoid": (net(lambda s, x: s.b(torch.sigmoid(s.a(x))), a=conv(), b=conv()), IMAGE),
    "clamp": (net(lambda s, x: s.b(F.relu6(s.a(x))), a=conv(), b=conv()), IMAGE),
    "depthwise": (net(lambda s, x: s.b(F.relu(s.a(x))), a=conv(4, 4, groups=4), b=conv(4, 5)), (torch.zeros(2, 4, 8, 8),)),
    "movement": (
        net(lambda s, x: s.fc(F.max_pool2d(F.max_pool2d(s.a(x), 2), 2).flatten(1)), a=conv(), fc=nn.Linear(12, 4)),
        IMAGE,
    ),
    "all zero": (net(_twice, c=_filled(conv(), weight=0.0, bias=0.0)), IMAGE),
    "a layer of zeros": (net(lambda s, x: s.b(F.relu(s.a(x))), a=conv(), b=_filled(conv(), weight=0.0)), IMAGE),
    "a huge bias": (net(lambda s, x: s.b(F.relu(s.a(x))), a=conv(), b=_filled(conv(), bias=1e9)), IMAGE),
    "a huge bias in a shared layer": (net(_twice, c=_filled(conv(), bias=-1e7)), IMAGE),
    "constant operands": (net(lambda s, x: s.b(s.a(x) + torch.ones(3, 1, 1)) * 2.0, a=conv(), b=conv()), IMAGE),
    "transposed": (net(lambda s, x: s.b(s.a(x)), a=nn.ConvTranspose2d(3, 3, 2), b=conv()), IMAGE),
    "weight read decoded": (net(_decoded, b=conv()), IMAGE),
}
"""Name -> model and example inputs. Each goes through the whole pipeline, and the real runtime gives the predicted integers."""
