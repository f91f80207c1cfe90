"""What `torch.ao.quantization.convert` and `convert_fx` leave behind: the stand-in of each quantized module.

Only the arithmetic that a target's kernels have is read; everything else is refused by the name of its place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.intrinsic.quantized.dynamic as nniqd
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
import torch.nn.functional as F
from torch import nn

from exactq.conversion.standins import (
    Apply,
    Decode,
    DynamicLayer,
    Functional,
    Layer,
    Mark,
    convolution_places,
    place,
    quantized_weights,
)
from exactq.errors import ModelError

Make = Callable[[Any, str], nn.Module]
"""A quantized module and its path -> its stand-in."""


def _layer(module: Any, name: str, *, convolves: bool, relu: bool) -> nn.Module:
    weights = quantized_weights(module.weight(), module.bias(), name)
    places = convolution_places(module, name) if convolves else None
    return Layer(weights, places, relu=relu, place=place(module.scale, module.zero_point, torch.quint8, name))


def _dynamic(module: Any, name: str, *, relu: bool) -> nn.Module:
    if (dtype := module._packed_params.dtype) != torch.qint8:
        raise ModelError(f"`{name}` has weights of {str(dtype).removeprefix('torch.')}: only int8 weights are read")
    # Modules of before version 4 use all codes (torch/ao/nn/quantized/dynamic/modules/linear.py: forward).
    reduced = relu or module.version is not None and module.version >= 4
    weights = quantized_weights(module.weight(), module.bias(), name)
    if bool(weights.grid.grid.zero.any()):
        raise ModelError(f"`{name}` has weights on a grid whose zero is not 0: dynamic layers of such were not measured")
    return DynamicLayer(weights, name, relu=relu, reduce_range=reduced)


def _quantize(module: Any, name: str) -> nn.Module:
    return Mark(place(module.scale, module.zero_point, module.dtype, name))


def _functional(module: Any, name: str) -> nn.Module:
    return Functional(place(module.scale, module.zero_point, torch.quint8, name))


def _sigmoid(module: Any, name: str) -> nn.Module:
    return Apply(torch.sigmoid, place(module.output_scale, module.output_zero_point, torch.quint8, name))


def _hardswish(module: Any, name: str) -> nn.Module:
    return Apply(F.hardswish, place(module.scale, module.zero_point, torch.quint8, name))


def _leaky_relu(module: Any, name: str) -> nn.Module:
    slope = float(module.negative_slope)
    return Apply(partial(F.leaky_relu, negative_slope=slope), place(module.scale, module.zero_point, torch.quint8, name))


def _elu(module: Any, name: str) -> nn.Module:
    return Apply(partial(F.elu, alpha=float(module.alpha)), place(module.scale, module.zero_point, torch.quint8, name))


_CONVOLUTION = partial(_layer, convolves=True, relu=False)
_CONVOLUTION_RELU = partial(_layer, convolves=True, relu=True)

DYNAMIC: dict[type[nn.Module], bool] = {nnqd.Linear: False, nniqd.LinearReLU: True}
"""Modules that quantize their input at run time, and whether a relu is in them."""

STAND_INS: dict[type[nn.Module], Make] = {
    nnq.Quantize: _quantize,
    nnq.DeQuantize: lambda module, name: Decode(),
    nnq.Linear: partial(_layer, convolves=False, relu=False),
    nniq.LinearReLU: partial(_layer, convolves=False, relu=True),
    **dict.fromkeys((nnq.Conv1d, nnq.Conv2d, nnq.Conv3d), _CONVOLUTION),
    **dict.fromkeys((nniq.ConvReLU1d, nniq.ConvReLU2d, nniq.ConvReLU3d), _CONVOLUTION_RELU),
    **{kind: partial(_dynamic, relu=relu) for kind, relu in DYNAMIC.items()},
    nnq.QFunctional: _functional,
    nnq.Sigmoid: _sigmoid,
    nnq.Hardswish: _hardswish,
    nnq.LeakyReLU: _leaky_relu,
    nnq.ELU: _elu,
    nnq.ReLU6: lambda module, name: nn.ReLU6(),
    nnq.Dropout: lambda module, name: nn.Identity(),
}
"""Quantized module -> its stand-in."""

_PACKAGES = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.", "torch.ao.nn.quantizable.", "torch.nn.quantized.")


def is_converted(module: nn.Module) -> bool:
    """Whether the module holds or makes codes of PyTorch's own quantization."""
    return type(module).__module__.startswith(_PACKAGES) and not _is_bookkeeping(module)


def _is_bookkeeping(module: nn.Module) -> bool:
    """Packed parameters, and functionals that were not converted: they make no codes by themselves."""
    return type(module).__name__.endswith("PackedParams") or isinstance(module, nnq.FloatFunctional | nnq.FXFloatFunctional)


def stand_in(module: nn.Module, name: str) -> nn.Module:
    """The stand-in of a quantized module; raises `ModelError` for one that no target here can run."""
    make = STAND_INS.get(type(module))
    if make is None:
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        known = ", ".join(sorted({t.__name__ for t in STAND_INS}))
        raise ModelError(f"`{name}` is a {kind}, which is not read; quantized modules that are: {known}")
    return make(module, name)
