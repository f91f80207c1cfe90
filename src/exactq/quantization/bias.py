"""Biases on the accumulator's grid: b ≈ code · fl(s_x·s_w), and weight scales large enough that the code leaves room.

A kernel adds the code to an int32 sum of products and wraps silently, so a code near 2^31 is a wrong answer waiting for its
input. Here codes stay within 2^30, which leaves 2^30 for the products: 33,155 of the largest, 255·127 each. ONNX Runtime's own
quantizer goes up to 2^31 less 214,813, and its fused kernel then wraps (1.31.1, measured).
"""

from __future__ import annotations

import torch
from torch import Tensor

from exactq.errors import ModelError
from exactq.numerics.formats import Grid
from exactq.quantization.ranges import SMALLEST

LARGEST = 2**30
"""The largest magnitude of a bias code."""


def product(input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """The scales of an accumulator, float32 of the weight scales' shape: fl(s_x·s_w), one float32 product.

    Raises `ModelError` where a product is not a normal float32: runtimes flush it to zero, or it is infinite.
    """
    scale = input_scale.to(torch.float32) * weight_scale.to(torch.float32)
    if not bool((torch.isfinite(scale) & (scale >= torch.finfo(torch.float32).tiny)).all()):
        raise ModelError(
            f"the input's scale {input_scale.item():g} times the weights' {weight_scale.min().item():g}.."
            f"{weight_scale.max().item():g} is no normal float32: a bias needs a grid"
        )
    return scale


def bias_codes(bias: Tensor, scale: Tensor) -> Tensor:
    """The int32 codes (C,) of a bias (C,) on the grid `scale` (one element or C, from `product`): rint(b / scale) in float64.

    Ties to even. Raises `ModelError` for NaN, infinity, and a code beyond ±`LARGEST`, naming the channel.

    >>> bias_codes(torch.tensor([0.25, 0.75, -1.0]), torch.tensor(0.5))
    tensor([ 0,  2, -2], dtype=torch.int32)
    """
    codes = _codes(bias, scale)
    if bool((wrong := ~(codes.abs() <= LARGEST)).any()):  # NaN too
        c = int(wrong.nonzero()[0])
        raise ModelError(
            f"the bias {bias.flatten()[c].item():g} of channel {c} has no code within ±2^30 on steps of "
            f"{scale.flatten().expand(bias.numel())[c].item():g}: raise the channel's weight scale (scale_floor)"
        )
    return codes.to(torch.int32)


def scale_floor(bias: Tensor, input_scale: Tensor) -> Tensor:
    """The smallest weight scale of each channel, float32 (C,), at which its bias has a code within ±`LARGEST`.

    Never below `SMALLEST`, where every scale ends anyway; that is also the answer for a bias of 0. Raises `ModelError` for a
    bias that is not finite.
    """
    if not bool(torch.isfinite(bias).all()):
        c = int((~torch.isfinite(bias.flatten())).nonzero()[0])
        raise ModelError(f"the bias of channel {c} is {bias.flatten()[c].item()}: a grid needs finite values")
    floor = (bias.detach().flatten().double().abs() / (input_scale.double() * LARGEST)).to(torch.float32).clamp(min=SMALLEST)
    # fl(s_x·s_w) may round down; a few units in the last place make up for it.
    while bool((over := _codes(bias, product(input_scale, floor)).abs() > LARGEST).any()):
        floor = torch.where(over, torch.nextafter(floor, torch.tensor(torch.inf)), floor)
    return floor


def guard(bias: Tensor, input_scale: Tensor, weights: Grid) -> tuple[Grid, list[int]]:
    """`weights` with the scales raised that the bias needs higher, and the channels whose bias did.

    One scale for all channels is raised to what the neediest asks. Weight codes on the raised grid differ: whatever was
    certified of them must be made anew, with these scales as `floor`.
    """
    floor, scale = scale_floor(bias, input_scale), weights.scale.flatten()
    needy = (floor > scale).nonzero().flatten().tolist()
    raised = torch.maximum(scale, floor if scale.numel() > 1 else floor.max())
    return Grid(weights.format, raised.reshape(weights.scale.shape), weights.zero), needy


def _codes(bias: Tensor, scale: Tensor) -> Tensor:
    return torch.round(bias.detach().flatten().double() / scale.flatten().double())
