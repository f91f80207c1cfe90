"""Small networks: one for each way in which an operator stands between quantized values, and whole ones in miniature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import exactq
from exactq.quantized import Quantized


class Net(nn.Module):
    """Modules by name, and how values go through them: `run(net, *inputs)`."""

    def __init__(self, run: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


@dataclass(frozen=True)
class Example:
    """A network, the shapes of its inputs without the batch, and whether everything between the borders is integers."""

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    integers: bool = True


def batch(example: Example, size: int, seed: int, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Normally distributed inputs of that seed."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, *shape, generator=generator) * scale for shape in example.shapes)


@cache
def quantized(example: Example, *, target: str = "onnxruntime", recipe: str = "w8a8", seed: int = 0) -> Quantized:
    """The network with random weights, calibrated on 32 inputs."""
    torch.manual_seed(seed)
    model = example.make().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.4)
    return exactq.quantize(model, batch(example, 2, 1), calibration=[batch(example, 32, 2)], target=target, recipe=recipe)


CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
IMAGE = ((3, 7, 7),)
ROWS = ((4, 10),)


def image(rank: int) -> tuple[tuple[int, ...]]:
    return ((3, *(7,) * rank),)


def convolution(rank: int, out: int = 6, **options: Any) -> Callable[[], nn.Module]:
    """A convolution behind another, so that it reads codes of a kernel."""
    return lambda: Net(lambda n, x: n.b(n.a(x)), a=CONV[rank](3, 6, 1), b=CONV[rank](6, out, **options))


def between(rank: int, run: Callable[[Tensor], Tensor], channels: int = 6) -> Callable[[], nn.Module]:
    """A function between two convolutions; the second, of one pixel, reads what it makes."""
    return lambda: Net(lambda n, x: n.b(run(n.a(x))), a=CONV[rank](3, 6, 1), b=CONV[rank](channels, 4, 1))


def alone(rank: int, run: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A function of a convolution that is the network's output."""
    return lambda: Net(lambda n, x: run(n.a(x)), a=CONV[rank](3, 6, 3))


def two(run: Callable[[Tensor, Tensor], Tensor], other: int = 6) -> Callable[[], nn.Module]:
    """A function of two convolutions of one image."""
    return lambda: Net(lambda n, x: run(n.a(x), n.b(x)), a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(3, other, 3))


def rows(run: Callable[[Any, Tensor], Tensor], *, bias: bool = True) -> Callable[[], nn.Module]:
    """A function of two linear layers, 10 -> 8 and 8 -> 5."""
    return lambda: Net(run, a=nn.Linear(10, 8), b=nn.Linear(8, 5, bias=bias))


def _convolutions(rank: int) -> tuple[Example, ...]:
    options: dict[str, dict[str, Any]] = {
        "plain": {"kernel_size": 3, "out": 9},
        "grouped": {"kernel_size": 3, "groups": 3, "padding": 1},
        "depthwise": {"kernel_size": 3, "groups": 6, "padding": 1},
        "depthwise doubled": {"kernel_size": 3, "groups": 6, "out": 12},
        "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
        "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
        "of one pixel": {"kernel_size": 1},
        "without bias": {"kernel_size": 3, "bias": False},
        "same": {"kernel_size": 2, "padding": "same"},
    }
    return tuple(Example(f"conv{rank}d {name}", convolution(rank, **o), image(rank)) for name, o in options.items())


def _pools(rank: int, name: str, options: dict[str, tuple[Any, ...]]) -> tuple[Example, ...]:
    pool = getattr(F, f"{name}{rank}d")
    return tuple(
        Example(f"{name}{rank}d {kind}", between(rank, lambda x, o=o: pool(x, *o)), image(rank))  # type: ignore[misc]
        for kind, o in options.items()
    )


_MAX: dict[str, tuple[Any, ...]] = {"of 2": (2,), "padded": (3, 2, 1), "dilated": (2, 1, 0, 2)}
_MEAN: dict[str, tuple[Any, ...]] = {
    "of 2": (2,),
    "padded": (3, 2, 1),
    "padded, not counted": (3, 2, 1, False, False),
    "whole": (7,),
}
_ONE: dict[str, tuple[Any, ...]] = {"to one": (1,)}


def _bounded(lo: float | None, hi: float | None) -> Example:
    return Example(f"clamp {lo}..{hi}", between(2, lambda x: torch.clamp(x, lo, hi)), IMAGE, integers=lo == 0)


def _padded(name: str, sides: tuple[int, ...], value: float = 0.0, channels: int = 6) -> Example:
    return Example(f"pad {name}", between(2, lambda x: F.pad(x, sides, value=value), channels), IMAGE)


EXAMPLES: dict[str, tuple[Example, ...]] = {
    **{f"aten.conv{rank}d": _convolutions(rank) for rank in (1, 2, 3)},
    **{f"aten.max_pool{rank}d": _pools(rank, "max_pool", _MAX) for rank in (1, 2, 3)},
    **{f"aten.avg_pool{rank}d": _pools(rank, "avg_pool", _MEAN) for rank in (1, 2, 3)},
    **{f"aten.adaptive_avg_pool{rank}d": _pools(rank, "adaptive_avg_pool", _ONE) for rank in (1, 2, 3)},
    "aten.linear": (
        Example("linear of vectors", rows(lambda n, x: n.b(n.a(x))), ((10,),)),
        Example("linear of rows", rows(lambda n, x: n.b(n.a(x))), ROWS),
        Example("linear of rows without bias", rows(lambda n, x: n.b(n.a(x)), bias=False), ROWS),
        Example("linear of rows of rows behind relu", rows(lambda n, x: n.b(F.relu(n.a(x)))), ((3, 4, 10),)),
        Example("linear of rows that stand across", rows(lambda n, x: n.b(n.a(x).transpose(0, 1)).transpose(0, 1)), ROWS),
    ),
    "aten.matmul": (
        Example("matmul of rows", rows(lambda n, x: n.a(x) @ n.a(x).transpose(1, 2)), ROWS),
        Example(
            "matmul of heads",
            rows(lambda n, x: n.a(x).view(-1, 4, 2, 4).transpose(1, 2) @ n.a(x).view(-1, 4, 2, 4).permute(0, 2, 3, 1)),
            ROWS,
        ),
    ),
    "aten.add": (
        Example("add", two(lambda a, b: a + b), IMAGE),
        Example("add and relu", two(lambda a, b: F.relu(a + b)), IMAGE),
        Example("add of a pixel", two(lambda a, b: a + F.adaptive_avg_pool2d(b, 1)), IMAGE),
        Example("add to a pixel", two(lambda a, b: F.adaptive_avg_pool2d(b, 1) + a), IMAGE),
        Example("add to itself", alone(2, lambda x: x + x), IMAGE),
    ),
    "aten.mul": (
        Example("mul", two(lambda a, b: a * b), IMAGE),
        Example("mul by a pixel", two(lambda a, b: a * F.adaptive_avg_pool2d(b, 1)), IMAGE),
        Example("mul by a sigmoid", two(lambda a, b: a * torch.sigmoid(b)), IMAGE),
    ),
    "aten.cat": (
        Example("cat of channels", two(lambda a, b: torch.cat([a, b], 1), other=5), IMAGE),
        Example("cat of columns", two(lambda a, b: torch.cat([a, b], -1)), IMAGE),
    ),
    "aten.sigmoid": (Example("sigmoid", between(2, torch.sigmoid), IMAGE),),
    "aten.hardswish": (Example("hardswish", between(2, F.hardswish), IMAGE),),
    "aten.leaky_relu": (Example("leaky_relu", between(2, lambda x: F.leaky_relu(x, 0.1)), IMAGE),),
    "aten.mean": (
        Example("mean of images", alone(2, lambda x: x.mean((2, 3))), IMAGE),
        Example("mean of columns, kept", between(2, lambda x: x.mean(-1, keepdim=True)), IMAGE),
        Example("mean of channels", between(2, lambda x: x.mean(1, keepdim=True), 1), IMAGE, integers=False),
    ),
    "aten.relu": (
        Example("relu behind conv", between(2, F.relu), IMAGE),
        Example("relu of the input", lambda: Net(lambda n, x: n.a(F.relu(x)), a=nn.Conv2d(3, 6, 3)), IMAGE, integers=False),
        Example("relu behind max_pool", between(2, lambda x: F.relu(F.max_pool2d(x, 2))), IMAGE, integers=False),
        Example(
            "relu of a forked value",
            lambda: Net(
                lambda n, x: (lambda y: n.b(F.relu(y)) + y)(n.a(x)), a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 6, 3, padding=1)
            ),
            IMAGE,
            integers=False,
        ),
    ),
    "aten.clamp": (
        Example("relu6", between(2, F.relu6), IMAGE),
        *(_bounded(lo, hi) for lo, hi in ((0, 0.3), (0, 1e30), (-1, 1), (-0.2, 0.2), (0.1, 0.5), (None, 0.3), (-0.5, None))),
    ),
    "aten.view": (
        Example("view", lambda: Net(lambda n, x: n.b(n.a(x).view(-1, 150)), a=nn.Conv2d(3, 6, 3), b=nn.Linear(150, 4)), IMAGE),
    ),
    "aten.flatten": (Example("flatten", alone(2, lambda x: torch.flatten(x, 2)), IMAGE),),
    "aten.unsqueeze": (
        Example(
            "unsqueeze",
            lambda: Net(lambda n, x: n.b(n.a(x).unsqueeze(2)), a=CONV[1](3, 6, 3), b=CONV[2](6, 4, (1, 2))),
            image(1),
        ),
    ),
    "aten.squeeze": (
        Example("squeeze", alone(2, lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2)), IMAGE),
        Example("squeeze of two axes", alone(2, lambda x: F.adaptive_avg_pool2d(x, 1).squeeze((2, 3))), IMAGE),
    ),
    "aten.permute": (
        Example(
            "permute", lambda: Net(lambda n, x: n.b(n.a(x).permute(0, 2, 3, 1)), a=CONV[2](3, 6, 3), b=nn.Linear(6, 4)), IMAGE
        ),
        Example("permute and flatten", alone(2, lambda x: x.permute(0, 2, 3, 1).flatten(1)), IMAGE),
    ),
    "aten.transpose": (
        Example("transpose of rows and columns", between(2, lambda x: x.transpose(2, 3)), IMAGE),
        Example("transpose of rows", rows(lambda n, x: n.a(x).transpose(1, 2)), ROWS),
    ),
    "aten.slice": (Example("slice", between(2, lambda x: x[:, 1:4, ::2, -3:], 3), IMAGE),),
    "aten.constant_pad_nd": (
        _padded("unevenly", (1, 2, 0, 1)),
        _padded("channels", (0, 0, 0, 0, 1, 2), channels=9),
        _padded("with a value", (1, 2, 0, 1), 0.3),
        _padded("with a value beyond the grid", (1, 2, 0, 1), -30.0),
        Example("pad behind relu", between(2, lambda x: F.pad(F.relu(x), (1, 2, 0, 1))), IMAGE),
    ),
}
"""ATen operator -> examples that hold it. An operator that some target's rules name and that is missing here fails a test."""


class Shortcut(nn.Module):
    """A residual block whose shortcut halves the image and pads channels (option A of the CIFAR ResNets)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.stride, self.extra = stride, outer - inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride] if self.stride > 1 else x
        short = F.pad(short, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2)) if self.extra else short
        return F.relu(y + short)


class Inverted(nn.Module):
    """An inverted residual block: expand, depthwise, project; relu6, and none behind the sum."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(inner, 3 * inner, 1, bias=False), nn.BatchNorm2d(3 * inner), nn.ReLU6()),
            *(
                nn.Conv2d(3 * inner, 3 * inner, 3, stride, 1, groups=3 * inner, bias=False),
                nn.BatchNorm2d(3 * inner),
                nn.ReLU6(),
            ),
            *(nn.Conv2d(3 * inner, outer, 1, bias=False), nn.BatchNorm2d(outer)),
        )
        self.adds = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class Gate(nn.Module):
    """Squeeze and excite: channels times a sigmoid of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Encoder(nn.Module):
    """A transformer's encoder block, written out: softmax, layer_norm and gelu are no integer kernels."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.stem, self.heads = nn.Linear(10, width), heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-2, -1) * 0.5, -1)
        x = x + self.o((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def head(body: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def resnet() -> nn.Module:
    stem = (nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return head(nn.Sequential(*stem, Shortcut(8, 8, 1), Shortcut(8, 16, 2), Shortcut(16, 21, 2)), 21)


def mobilenet() -> nn.Module:
    stem = (nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    return head(nn.Sequential(*stem, Inverted(8, 8, 1), Inverted(8, 12, 2), Inverted(12, 12, 1)), 12)


def densenet() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        found = [n.stem(x)]
        for layer in (n.one, n.two, n.three):
            found.append(F.relu(layer(torch.cat(found, 1) if len(found) > 1 else found[0])))
        return F.avg_pool2d(torch.cat(found, 1), 2)

    layers = {name: nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i, name in enumerate(("one", "two", "three"))}
    return head(Net(run, stem=nn.Conv2d(3, 8, 3, padding=1), **layers), 20)


def gated() -> nn.Module:
    return head(nn.Sequential(nn.Conv2d(3, 7, 3), Gate(7), Gate(7)), 7)


def several() -> nn.Module:
    """Two inputs, three outputs; one of them only moves codes, and one is another's codes seen otherwise."""

    def run(n: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = F.relu(n.a(x))
        pooled = F.max_pool2d(a, 2)
        both = pooled + n.b(y)[:, :, None, None]
        return both, pooled, n.c(both).flatten(1)

    return Net(run, a=nn.Conv2d(3, 6, 3, padding=1), b=nn.Linear(5, 6), c=nn.Conv2d(6, 2, 3))


WHOLE = (
    Example("resnet", resnet, ((3, 16, 16),)),
    Example("mobilenet", mobilenet, ((3, 16, 16),)),
    Example("densenet", densenet, ((3, 8, 8),)),
    Example("gated", gated, ((3, 9, 9),)),
    Example("several", several, ((3, 8, 8), (5,))),
    Example("one pixel", lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 7, 1)), ((3, 1, 1),)),
    Example("encoder", Encoder, ((6, 10),), integers=False),
)
"""Whole networks in miniature."""
