"""What `prepare`, `prepare_qat` and their FX forms leave behind: the stand-in of each layer that will be quantized.

A layer's weight codes are those that its fake quantization makes of its weight; batch normalization is folded as the layer's
own forward pass does it in evaluation mode: w = W·γ/√(v + ε), b = (B − μ)·γ/√(v + ε) + β.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.nn.intrinsic as nni
import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.nn.qat as nnqat
from torch import Tensor, nn

from exactq.conversion.fakequant import Used, fakes, observes, used
from exactq.conversion.given import WeightGrid
from exactq.conversion.standins import Layer, Place, Weights, convolution_places
from exactq.errors import ModelError
from exactq.numerics.formats import INT8, Grid

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRAINED = (
    *(nnqat.Linear, nnqat.Conv1d, nnqat.Conv2d, nnqat.Conv3d, nniqat.LinearReLU, nniqat.LinearBn1d),
    *(getattr(nniqat, f"{kind}{n}d") for kind in ("ConvReLU", "ConvBn", "ConvBnReLU") for n in (1, 2, 3)),
)
_OBSERVED = (nn.Linear, *_CONVOLUTIONS, nni.LinearReLU, nni.ConvReLU1d, nni.ConvReLU2d, nni.ConvReLU3d)


@dataclass(frozen=True, eq=False)
class Jump:
    """Where `convert` would leave the grid of training: the value, both scales (the first that differs), and both zeros."""

    name: str
    trained: tuple[float, int]
    converted: tuple[float, int]
    channels: int

    def __str__(self) -> str:
        (a, p), (b, q) = self.trained, self.converted
        many = f" in {self.channels} channels" if self.channels > 1 else ""
        zeros = f", zero {p} instead of {q}" if p != q else ""
        return f"`{self.name}`: scale {a:.9g}{zeros}, where convert() takes {b:.9g} (ratio {b / a:.5f}){many}"


def is_layer(module: nn.Module) -> bool:
    """Whether the module is a layer whose weight `convert` would quantize."""
    if type(module) in _TRAINED:
        return True
    return type(module) in _OBSERVED and getattr(module, "qconfig", None) is not None


def is_prepared(module: nn.Module) -> bool:
    """Whether the module is a fake quantization, an observer, or holds one."""
    return fakes(module) or observes(module) or type(module) in _TRAINED


def activation(module: nn.Module, name: str) -> tuple[Place, Used]:
    """The grid of an activation's fake quantization or observer; `ModelError` for one with a scale for each channel."""
    found = used(module, name)
    if found.axis is not None or found.scale.numel() != 1:
        raise ModelError(f"the activation `{name}` has a scale for each channel: kernels take one for the tensor")
    return Place(float(found.scale), int(found.zero), found.lo, found.hi, name), found


def layer(module: Any, name: str, place: Place | None) -> tuple[Layer, Used]:
    """The stand-in of a layer whose result is encoded at `place`, and the grid of its weight."""
    relu = isinstance(module, nniqat.LinearReLU) or "ReLU" in type(module).__name__
    inner: Any = module if type(module) in _TRAINED else module[0] if isinstance(module, nn.Sequential) else module
    weight, bias = _folded(inner)
    faked = getattr(module, "weight_fake_quant", None)
    if faked is None:
        faked = (getattr(module, "qconfig", None) or inner.qconfig).weight()
    found = used(faked, f"{name}.weight", weight)
    places = convolution_places(inner, name) if isinstance(inner, _CONVOLUTIONS) else None
    return Layer(Weights(*coded(weight, found, name), bias), places, relu=relu, place=place), found


def _folded(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer, its batch normalization folded."""
    weight, bias, norm = module.weight.detach(), module.bias, getattr(module, "bn", None)
    bias = None if bias is None else bias.detach()
    if norm is None:
        return weight, bias
    # In the order of nniqat's own forward pass, so that the codes are its own.
    scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    start = torch.zeros_like(norm.running_mean) if bias is None else bias
    folded = norm.bias.detach() + (start.double() - norm.running_mean.double()).mul(scale.double()).float()
    return weight * scale.reshape([-1] + [1] * (weight.ndim - 1)), folded


def coded(weight: Tensor, found: Used, name: str) -> tuple[Tensor, WeightGrid]:
    """The codes whose reals fake quantization made of a weight, or that convert's quantizer makes: rne(fl(w·fl(1/s))) + z."""
    if found.lo < INT8.lo or found.hi > INT8.hi:
        raise ModelError(f"`{name}.weight` is trained with codes of {found.lo}..{found.hi}: weights are int8 on every target")
    shape = [-1 if n == found.axis else 1 for n in range(weight.ndim)] if found.axis is not None else []
    scale, zero = found.scale.reshape(shape), found.zero.reshape(shape)
    assert found.values is not None
    codes = (torch.round(found.values * (1 / scale)) + zero).clamp(found.lo, found.hi).to(torch.int8)
    return codes, WeightGrid(Grid(INT8, scale.float(), zero), found.axis)


def jump(name: str, found: Used) -> Jump | None:
    """What `convert` would change, or None where it takes the same grid."""
    a, b = found.scale.flatten(), found.converted.flatten()
    p, q = found.zero.flatten(), found.converted_zero.flatten()
    if a.shape != b.shape or p.shape != q.shape:
        return None
    differ = (a != b) | (p != q)
    if not bool(differ.any()):
        return None
    first = int(differ.nonzero()[0])
    return Jump(name, (float(a[first]), int(p[first])), (float(b[first]), int(q[first])), int(differ.sum()))
