"""FBGEMM's way from an int32 accumulator to codes (QuantUtilsAvx2.cc, QuantUtilsAvx512.cc requantizeOutputProcessing).

s = fl(sx·sw), m = fl(s / sy)
v = fl(fl(acc) + fl(b / s))             weights with a scale a channel
v = fma(b, fl(1 / s), fl(acc))          weights with one scale: the compiler contracts product and sum into one rounding
y = clamp(sat16(sat16(cvt(fl(v·m))) + zy))
The bias b is real and never rounded to int32. `cvt` is CVTPS2DQ, which makes −2³¹ of everything beyond int32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exactq.kernels.accumulators import Kernel, channel_scales
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import packing_to_codes, scalar_scale
from exactq.numerics.rounding import fma


def requantization(bias: Tensor | None, *, x: Grid, w: Grid, y: Grid, channels: int, rank: int, relu: bool) -> Kernel:
    """The function from int32 sums (n, channels, …) with `rank` axes behind the channels to codes of `y`.

    `bias` float32 (channels,). Whether `w` has one scale or one a channel is seen from its shape: one channel with a scale of
    its own rounds as channels do. With `relu` the lowest code is the zero's.
    """
    shape = (-1, *[1] * rank)
    scale = scalar_scale(x) * channel_scales(w, channels)  # float32 (channels,)
    factor = (scale / scalar_scale(y)).reshape(shape)
    finish = packing_to_codes(y, relu=relu)
    if bias is None:
        return lambda acc: finish(acc.to(torch.float32) * factor.to(acc.device))
    if w.scale.ndim:
        addend = (bias.to(torch.float32) / scale).reshape(shape)
        return lambda acc: finish((acc.to(torch.float32) + addend.to(acc.device)).mul_(factor.to(acc.device)))
    real, inverse = bias.to(torch.float32).reshape(shape), 1 / scale[0]
    return lambda acc: finish(
        fma(real.to(acc.device), inverse.to(acc.device), acc.to(torch.float32)).mul_(factor.to(acc.device))
    )
