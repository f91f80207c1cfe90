"""Random networks of the operators that have integer kernels: a seed gives a network, its input shapes and its recipe."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import exactq
from exactq.quantized import Quantized

Shape = tuple[int, ...]
Run = Callable[[Tensor], Tensor]


class Drawn(nn.Module):
    """A random acyclic graph: each step reads one or two of the values before it; what nothing reads is an output."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.layers = nn.ModuleDict()
        self.steps: list[tuple[Callable[..., Tensor], tuple[int, ...]]] = []
        rank = self.random.choice((1, 2, 2, 2, 2, 3))
        side = {1: 17, 2: 9, 3: 6}[rank]
        inputs = self.random.choice((1, 1, 1, 2))
        image = tuple(side - self.random.randrange(3) for _ in range(rank))
        self.shapes: list[Shape] = [(self.random.randrange(1, 6), *image) for _ in range(inputs)]
        self.inputs = tuple(self.shapes)
        for _ in range(self.random.randrange(2, 11)):
            self._step()
        read = {n for _, reads in self.steps for n in reads}
        self.outputs = [n for n in range(inputs, len(self.shapes)) if n not in read]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = list(inputs)
        for run, reads in self.steps:
            values.append(run(*(values[n] for n in reads)))
        return tuple(values[n] for n in self.outputs)

    def _step(self) -> None:
        at = self.random.choice((len(self.shapes) - 1, len(self.shapes) - 1, self.random.randrange(len(self.shapes))))
        shape = self.shapes[at]
        kinds = (
            [self._conv] * 4
            + [self._unary] * 3
            + [self._pool] * 2
            + [self._move, self._pair, self._pair, self._pixel, self._head]
        )
        made = self.random.choice(kinds)(at, shape) if len(shape) > 1 else self._linear(at, shape)
        if made is None:
            return
        run, reads = made
        with torch.no_grad():
            result = run(*(torch.zeros(2, *self.shapes[n]) for n in reads))
        if result[0].numel() < 6000:
            self.steps.append((run, reads))
            self.shapes.append(tuple(result.shape[1:]))

    def _layer(self, layer: nn.Module) -> nn.Module:
        self.layers[f"layer{len(self.layers)}"] = layer
        for parameter in layer.parameters():
            spread = 1 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.3
            values = [self.random.gauss(0, spread) for _ in range(parameter.numel())]
            parameter.data = torch.tensor(values).reshape(parameter.shape)
        return layer

    def _conv(self, at: int, shape: Shape) -> Any:
        channels, *image = shape
        rank = len(image)
        kernel = tuple(self.random.randrange(1, 1 + min(3, n)) for n in image)
        groups = self.random.choice([g for g in range(1, channels + 1) if channels % g == 0])
        out = groups * self.random.randrange(1, 1 + max(1, 18 // groups))
        options: dict[str, Any] = {"groups": groups, "bias": self.random.random() < 0.7}
        options |= {"stride": self.random.choice((1, 1, 2)), "padding": self.random.choice((0, 1))}
        if all(2 * (k - 1) < n for k, n in zip(kernel, image, strict=True)):
            options["dilation"] = self.random.choice((1, 1, 2))
        layer = self._layer((nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](channels, out, kernel, **options))  # type: ignore[arg-type]
        after = self.random.choice((None, F.relu, F.relu6, self._clamp()))
        return (layer if after is None else lambda x: after(layer(x))), (at,)

    def _clamp(self) -> Run:
        lo, hi = self.random.choice(((0.0, 0.5), (-0.3, 0.4), (0.0, 3.0), (None, 0.2), (-0.1, None)))
        return lambda x: torch.clamp(x, lo, hi)

    def _unary(self, at: int, shape: Shape) -> Any:
        slope = self.random.uniform(0, 0.5)
        return self.random.choice((F.relu, F.relu6, torch.sigmoid, lambda x: F.leaky_relu(x, slope), self._clamp())), (at,)

    def _pool(self, at: int, shape: Shape) -> Any:
        rank = len(shape) - 1
        kind = self.random.choice(("max_pool", "avg_pool", "adaptive_avg_pool"))
        if kind == "adaptive_avg_pool":
            return (lambda x: getattr(F, f"{kind}{rank}d")(x, 1)), (at,)
        kernel = self.random.randrange(1, 1 + min(3, *shape[1:], 3))
        stride, padding = self.random.choice((1, 2)), self.random.choice((0, kernel // 2))
        more = {"count_include_pad": self.random.random() < 0.5} if kind == "avg_pool" else {}
        return (lambda x: getattr(F, f"{kind}{rank}d")(x, kernel, stride, padding, **more)), (at,)

    def _move(self, at: int, shape: Shape) -> Any:
        axis = self.random.randrange(1, len(shape) + 1)
        other = self.random.randrange(1, len(shape) + 1)
        step = self.random.choice((1, 2))
        sides = tuple(self.random.randrange(3) for _ in range(2 * self.random.randrange(1, len(shape) + 1)))
        value = self.random.choice((0.0, 0.0, 0.4, -7.0))
        start = self.random.randrange(shape[axis - 1])
        order = (0, *self.random.sample(range(1, len(shape) + 1), len(shape)))
        size = shape[axis - 1]
        return self.random.choice(
            (
                lambda x: x.transpose(axis, other),
                lambda x: x.permute(order),
                lambda x: F.pad(x, sides, value=value),
                lambda x: x.narrow(axis, start, size - start),
                lambda x: torch.ops.aten.slice(x, axis, 0, size, step),
                lambda x: x.flatten(-2).unflatten(-1, x.shape[-2:]),
            )
        ), (at,)

    def _pair(self, at: int, shape: Shape) -> Any:
        same = [n for n, s in enumerate(self.shapes) if s == shape]
        other = self.random.choice(same)
        kind = self.random.choice(("add", "mul", "cat", "add and relu"))
        if kind == "cat":
            alike = [n for n, s in enumerate(self.shapes) if len(s) == len(shape) and s[1:] == shape[1:]]
            return (lambda a, b: torch.cat([a, b], 1)), (at, self.random.choice(alike))
        runs: dict[str, Callable[..., Tensor]] = {
            "add": lambda a, b: a + b,
            "mul": lambda a, b: a * b,
            "add and relu": lambda a, b: F.relu(a + b),
        }
        return runs[kind], (at, other)

    def _pixel(self, at: int, shape: Shape) -> Any:
        rank = len(shape) - 1
        pool: Run = lambda x: getattr(F, f"adaptive_avg_pool{rank}d")(x, 1)  # noqa: E731
        return self.random.choice((lambda x: x + pool(x), lambda x: pool(x) + x, lambda x: x * torch.sigmoid(pool(x)))), (at,)

    def _linear(self, at: int, shape: Shape) -> Any:
        layer = self._layer(nn.Linear(shape[-1], self.random.randrange(1, 12), bias=self.random.random() < 0.7))
        after = self.random.choice((None, F.relu))
        return (layer if after is None else lambda x: after(layer(x))), (at,)

    def _head(self, at: int, shape: Shape) -> Any:
        if self.random.random() < 0.5:
            return self._linear(at, shape)
        return (lambda x: x.flatten(1)), (at,)


def drawn(seed: int, target: str = "onnxruntime") -> tuple[Quantized, list[tuple[Tensor, ...]]]:
    """A random network, quantized for a target, and 3 batches of 1, 5 and 10 inputs."""
    model = Drawn(seed).eval()
    generator = torch.Generator().manual_seed(seed)

    def batch(size: int, spread: float) -> tuple[Tensor, ...]:
        return tuple(torch.randn(size, *shape, generator=generator) * spread for shape in model.inputs)

    recipe = ("w8a8", "portable", "w8a8-linear-w4")[seed % 3]
    if recipe == "w8a8-linear-w4" and not any(isinstance(m, nn.Linear) for m in model.modules()):
        recipe = "w8a8"
    made = exactq.quantize(model, batch(2, 1), calibration=[batch(16, 1)], target=target, recipe=recipe)
    return made, [batch(1, 1), batch(5, 1.5), batch(10, 3)]
