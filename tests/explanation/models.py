"""Models with written-out weights, whose explanations can be checked by hand."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

import exactq
from exactq.quantized import Quantized

IMAGE = torch.arange(9.0).reshape(1, 1, 3, 3) / 8 - 0.25
"""-0.25, -0.125 … 0.75"""


@cache
def by_hand() -> Quantized:
    """A convolution of 2×2 with padding in front of a relu."""
    model = nn.Sequential(nn.Conv2d(1, 1, 2, padding=1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[[1.0, -0.5], [0.25, 2.0]]]]))
        model[0].bias.fill_(0.3)
    return exactq.quantize(model.eval(), (IMAGE,), calibration=[IMAGE], target="onnxruntime@avx512vnni")


def all_zero() -> tuple[Quantized, Tensor]:
    """The well-known case: a convolution whose weights are all zero and whose bias is not, behind another; and its input."""
    torch.manual_seed(0)
    zero = nn.Conv2d(3, 2, 3)
    nn.init.zeros_(zero.weight)
    nn.init.constant_(zero.bias, 0.5)  # type: ignore[arg-type]
    x = torch.randn(4, 3, 6, 6)
    return exactq.quantize(nn.Sequential(nn.Conv2d(3, 3, 1), zero).eval(), (x,), calibration=[x]), x
