"""The grid that a fake-quant module or an observer really uses, asked of a copy, so that the module stays as it is.

`FusedMovingAvgObsFakeQuantize`, the default of PyTorch's QAT and of torchao's, recomputes scale and zero in C++ on every
forward, from its running minimum and maximum: max(|min|/128, max/127) for a symmetric int8 grid, and silently an affine one
where min >= 0 or max <= 0 (fused_obs_fake_quant.cpp: choose_qparams_fake_quant). `convert` asks the Python observer instead,
which divides by 127.5 (observer.py: _calculate_qparams). What a forward pass leaves in the buffers is what it used.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exactq.errors import ModelError


@dataclass(frozen=True, eq=False)
class Used:
    """Scales and zeros of codes lo..hi; `axis` None: one for the tensor. `converted` is what `convert` would take.

    `values` are a weight's fake-quantized values, where it was given.
    """

    scale: Tensor
    zero: Tensor
    lo: int
    hi: int
    axis: int | None
    converted: Tensor
    converted_zero: Tensor
    values: Tensor | None


def fakes(module: nn.Module) -> bool:
    """Whether the module is a fake quantization, of PyTorch's or torchao's."""
    return hasattr(module, "fake_quant_enabled") and hasattr(module, "activation_post_process") or _fixed(module)


def _fixed(module: nn.Module) -> bool:
    return any(t.__name__ == "FixedQParamsFakeQuantize" for t in type(module).__mro__)


def observes(module: nn.Module) -> bool:
    """Whether the module is an observer without fake quantization."""
    return any(t.__name__ == "ObserverBase" for t in type(module).__mro__)


def used(module: Any, name: str, weight: Tensor | None = None) -> Used:
    """The grid of a fake-quant module or observer as it stands, with the range that it saw last; `weight` is what it encodes.

    An observer without fake quantization sees the weight now, as `convert` lets it. Raises `ModelError` where nothing was ever
    observed, and where fake quantization is switched off.
    """
    own = copy.deepcopy(module)
    with torch.no_grad():
        return _observed(own, name, weight) if observes(own) else _faked(own, name, weight)


def _faked(module: Any, name: str, weight: Tensor | None) -> Used:
    if not int(module.fake_quant_enabled[0]):
        raise ModelError(
            f"the fake quantization of `{name}` is switched off, so the model's outputs are those of float values: "
            "model.apply(torch.ao.quantization.enable_fake_quant), and train or calibrate it so"
        )
    observer = getattr(module, "activation_post_process", None)
    _refuse_uncalibrated(module, observer, name)
    stop_observing(module)
    values = module(torch.zeros(1) if weight is None else weight)
    lo, hi = (getattr(observer, n, None) for n in ("quant_min", "quant_max"))
    lo, hi = (module.quant_min, module.quant_max) if lo is None or hi is None else (lo, hi)
    scale, zero = module.scale.detach().clone(), module.zero_point.detach()
    zero = zero.round().clamp(lo, hi).to(torch.int32)
    converted, converted_zero = _asked(module)
    axis = int(module.ch_axis) if scale.numel() > 1 or _by_channel(module) else None
    return Used(scale.float(), zero, int(lo), int(hi), axis, converted.float(), converted_zero.to(torch.int32), values)


def _by_channel(module: Any) -> bool:
    return getattr(module, "qscheme", None) in (torch.per_channel_symmetric, torch.per_channel_affine)


def _asked(module: Any) -> tuple[Tensor, Tensor]:
    """What `convert` asks for."""
    scale, zero = module.calculate_qparams()
    return scale.detach().clone(), zero.detach().clone()


def stop_observing(module: nn.Module) -> None:
    """Nothing; a fake quantization keeps its range from now on."""
    for flag in ("observer_enabled", "static_enabled"):
        if hasattr(module, flag):
            getattr(module, flag)[0] = 0


def _observed(module: Any, name: str, weight: Tensor | None) -> Used:
    if weight is not None:
        module(weight)
    _refuse_uncalibrated(module, module, name)
    scale, zero = _asked(module)
    axis = int(module.ch_axis) if _by_channel(module) else None
    zero = zero.to(torch.int32)
    return Used(scale.float(), zero, int(module.quant_min), int(module.quant_max), axis, scale.float(), zero, weight)


def _refuse_uncalibrated(module: Any, observer: Any, name: str) -> None:
    """Raise where an observer's range is still the one it was made with, and nobody set a scale by hand or learned one."""
    lowest = getattr(observer, "min_val", None)
    if not isinstance(lowest, Tensor) or lowest.numel() and bool(torch.isfinite(lowest).all()):
        return
    fused = any("FusedMovingAvg" in t.__name__ for t in type(module).__mro__)
    if fakes(module) and not fused and not (bool((module.scale == 1).all()) and bool((module.zero_point == 0).all())):
        return
    raise ModelError(
        f"`{name}` was prepared but never calibrated: its observer has seen no value. Run the prepared model on some batches, "
        "or train it, before it is converted"
    )
