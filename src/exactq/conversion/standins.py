"""Float modules with marks that stand in for the quantized modules of others while the model is traced.

A stand-in computes in reals what its original computes in codes, from the decoded weights, and marks the value that its
original encodes. It is named after the original's place in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exactq.conversion.given import WeightGrid
from exactq.conversion.markers import DECODED, DYNAMIC, NAMED, ON_GRID
from exactq.errors import ModelError
from exactq.numerics.formats import INT8, Format, Grid


@dataclass(frozen=True)
class Place:
    """A grid for one tensor, as the model has it, and the name of what is encoded on it."""

    scale: float
    zero: int
    lo: int
    hi: int
    name: str

    def mark(self, x: Tensor) -> Tensor:
        """`x`, marked."""
        return ON_GRID(x, self.scale, self.zero, self.lo, self.hi, self.name)


class Mark(nn.Module):
    """Encodes what it is given: a QuantStub, a fake quantization or an observer of an activation."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        """`x`, marked."""
        return self.place.mark(x)


class Decode(nn.Module):
    """Gives reals: a DeQuantStub."""

    def forward(self, x: Tensor) -> Tensor:
        """`x`, no longer codes."""
        return DECODED(x)


@dataclass(frozen=True, eq=False)
class Weights:
    """Weight codes on their grid, and the real bias."""

    codes: Tensor
    grid: WeightGrid
    bias: Tensor | None


class Layer(nn.Module):
    """A convolution of `places` (stride, padding, dilation, groups), or a linear layer of None; a relu and a mark behind it."""

    def __init__(self, weights: Weights, places: dict[str, Any] | None, *, relu: bool, place: Place | None) -> None:
        super().__init__()
        self.register_buffer("weight", weights.grid.grid.decode(weights.codes))
        self.register_buffer("bias", None if weights.bias is None else weights.bias.detach().float().clone())
        self.grid, self.places, self.relu, self.place = weights.grid, places, relu, place

    def forward(self, x: Tensor) -> Tensor:
        """The layer's reals, marked."""
        weight: Any = self.weight
        if self.places is None:
            y = F.linear(x, weight, self.bias)  # type: ignore[arg-type]
        else:
            conv: Any = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
            y = conv(x, weight, self.bias, **self.places)
        y = F.relu(y) if self.relu else y
        return y if self.place is None else self.place.mark(y)


class DynamicLayer(Layer):
    """A linear layer that lays a grid over its input when it sees it, and gives reals; a relu behind it."""

    def __init__(self, weights: Weights, name: str, *, relu: bool, reduce_range: bool) -> None:
        super().__init__(weights, None, relu=relu, place=None)
        self.name, self.reduce_range = name, reduce_range

    def forward(self, x: Tensor) -> Tensor:
        """The layer's reals, by the layer's name."""
        return NAMED(super().forward(DYNAMIC(x, self.reduce_range)), self.name)


class Apply(nn.Module):
    """A float operator and a mark: an operator whose result has a grid of its own."""

    def __init__(self, run: Callable[..., Tensor], place: Place) -> None:
        super().__init__()
        self.run, self.place = run, place

    def forward(self, *operands: Any) -> Tensor:
        """The operator's reals, marked."""
        return self.place.mark(self.run(*operands))


class Functional(nn.Module):
    """The methods of a QFunctional."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, marked."""
        return self.place.mark(torch.add(x, y))

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """max(x + y, 0), marked."""
        return self.place.mark(F.relu(torch.add(x, y)))

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        """x · y, marked."""
        return self.place.mark(torch.mul(x, y))

    def cat(self, x: Sequence[Tensor], dim: int = 0) -> Tensor:
        """The operands one after the other, marked."""
        return self.place.mark(torch.cat(list(x), dim))

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """The matrix product, marked."""
        return self.place.mark(torch.matmul(x, y))

    def add_scalar(self, x: Tensor, y: float) -> Tensor:
        """Nothing: quantized::add_scalar changes the grid, not the codes."""
        raise ModelError(f"`{self.place.name}`: add_scalar of codes moves their grid, which no target here does")

    def mul_scalar(self, x: Tensor, y: float) -> Tensor:
        """Nothing: quantized::mul_scalar changes the grid, not the codes."""
        raise ModelError(f"`{self.place.name}`: mul_scalar of codes stretches their grid, which no target here does")


def convolution_places(module: Any, name: str) -> dict[str, Any]:
    """Stride, padding, dilation and groups of a convolution module; `ModelError` for a padding that is not zeros."""
    if module.padding_mode != "zeros":
        raise ModelError(f"`{name}` pads with '{module.padding_mode}': only zeros can be padded within an integer kernel")
    return {n: getattr(module, n) for n in ("stride", "padding", "dilation", "groups")}


def quantized_weights(weight: Tensor, bias: Tensor | None, name: str) -> Weights:
    """Codes and grid of a quantized tensor; `ModelError` for anything but int8 along the output channels."""
    if weight.dtype != torch.qint8:
        raise ModelError(f"`{name}` has weights of {str(weight.dtype).removeprefix('torch.')}: only int8 weights are read")
    if weight.qscheme() == torch.per_channel_affine:
        scales, zeros, axis = weight.q_per_channel_scales(), weight.q_per_channel_zero_points(), weight.q_per_channel_axis()
        return channel_weights(weight.int_repr(), scales, zeros, axis, bias)
    if weight.qscheme() != torch.per_tensor_affine:
        raise ModelError(f"`{name}` has weights of the scheme {weight.qscheme()}, which is not read")
    grid = Grid(
        INT8, torch.tensor(weight.q_scale(), dtype=torch.float32), torch.tensor(weight.q_zero_point(), dtype=torch.int32)
    )
    return Weights(weight.int_repr(), WeightGrid(grid, None), bias)


def channel_weights(codes: Tensor, scales: Tensor, zeros: Tensor, axis: int, bias: Tensor | None) -> Weights:
    """Weights with a scale for each index of `axis`."""
    shape = [-1 if n == axis else 1 for n in range(codes.ndim)]
    grid = Grid(INT8, scales.to(torch.float32).reshape(shape), zeros.to(torch.int32).reshape(shape))
    return Weights(codes, WeightGrid(grid, axis), bias)


STORED = {torch.quint8: Format(8, 0, 255), torch.qint8: INT8}
"""The codes of PyTorch's quantized dtypes."""


def place(scale: Any, zero: Any, dtype: torch.dtype, name: str) -> Place:
    """The grid of a quantized tensor of that dtype, codes from end to end."""
    if dtype not in STORED:
        raise ModelError(f"`{name}` makes codes of {str(dtype).removeprefix('torch.')}: only quint8 and qint8 are read")
    return Place(float(scale), int(zero), STORED[dtype].lo, STORED[dtype].hi, name)
