"""Rounding that has a gradient: fake quantization with the straight-through estimator, and values put in another's place.

Forward, for activations and weights: y = s·clamp(rint(x/s), lo − z, hi − z), the bits of `Grid.decode(Grid.encode(x))`; for
biases y = sb·rint(b/sb) with sb = fl(sx·sw). Backward, as if rounding were not there: dy/dx = 1 where rint(x/s) + z is a code,
0 where it was clamped (Bengio et al. 2013, arXiv 1308.3432; Jacob et al. 2018, arXiv 1712.05877).

`x + (y - x).detach()`, as often written, rounds twice and misses y by an ulp here and there; here the value is y itself.
PyTorch's own fake quantization multiplies by 1/s, which puts ties elsewhere than the runtimes' division.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exactq.errors import ModelError
from exactq.numerics.formats import Grid, expand
from exactq.quantization.bias import bias_codes, product


class _StraightThrough(torch.autograd.Function):
    """y in place of x; the gradient passes where `inside`, and is 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
        ctx.save_for_backward(inside)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None


def fake_quantize(x: Tensor, at: Grid) -> Tensor:
    """The reals of the codes of float32 `x`, the bits of `at.decode(at.encode(x))`, for formats of up to 16 bits.

    NaN stays NaN, where `encode` gives the lowest code: training must see it.

    >>> from exactq.numerics.formats import UINT2
    >>> from exactq.quantization.ranges import grid
    >>> x = torch.tensor([0.25, 0.75, 9.0], requires_grad=True)
    >>> y = fake_quantize(x, grid(0.0, 1.5, UINT2))
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([0.0, 1.0, 1.5], [1.0, 1.0, 0.0])
    """
    y, inside = rounded(x, at)
    return _passed(x, y, inside)


def rounded(x: Tensor, at: Grid) -> tuple[Tensor, Tensor]:
    """The reals of the codes of `x`, and where a code was near enough that nothing was clamped; no gradient."""
    if at.format.bits > 16:
        raise ModelError(f"fake quantization in {at.format!r}: float32 tells at most 16-bit codes apart")
    with torch.no_grad():
        scale = expand(at.scale, x.shape)
        lo, hi = _bounds(at, x.shape)
        wanted = torch.round(x.detach() / scale)
        steps = torch.clamp(wanted, lo, hi)
        inside = wanted == steps
        return steps.add_(0.0).mul_(scale), inside  # codes know no −0


def _bounds(at: Grid, shape: Sequence[int]) -> tuple[Any, Any]:
    """The lowest and the highest code less the zero: numbers for one zero, tensors otherwise."""
    if at.zero.numel() == 1:
        return at.format.lo - int(at.zero), at.format.hi - int(at.zero)
    zero = expand(at.zero, shape)
    return (at.format.lo - zero).float(), (at.format.hi - zero).float()


def fake_quantize_bias(bias: Tensor, x: Grid, w: Grid) -> Tensor:
    """The reals of the int32 codes (C,) of a bias on the grid of the products of `x` and `w`; nothing is clamped."""
    with torch.no_grad():
        scale = product(x.scale, w.scale).flatten()
        y = bias_codes(bias, scale).to(torch.float32) * scale
    return _passed(bias, y, torch.ones((), dtype=torch.bool))


def _passed(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    return _StraightThrough.apply(x, y, inside)


@dataclass(frozen=True, eq=False)
class Learned:
    """A grid, and the tensors through which it learns: its scales, its zeros as reals; None where it does not.

    `share` is what their gradients are multiplied with.
    """

    grid: Grid
    step: Tensor | None = None
    zero: Tensor | None = None
    share: float = 1.0


class _LearnedRounding(torch.autograd.Function):
    """y in place of x, with gradients for x, the scale and the zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor | None, y: Tensor, inside: Tensor, at: Learned) -> Tensor:
        ctx.save_for_backward(x, y, inside)
        ctx.at = at
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, y, inside), at, g = ctx.saved_tensors, ctx.at, grads[0]
        passes, scale = g * inside, at.grid.scale
        per_scale = (g * y).sub_(passes * x).sum_to_size(scale.shape).div_(scale).mul_(at.share)
        per_zero = None
        if at.zero is not None:
            per_zero = (passes - g).sum_to_size(scale.shape).mul_(scale).mul_(at.share)
        return passes, per_scale, per_zero, None, None, None


def learned_quantize(x: Tensor, at: Learned) -> Tensor:
    """As `fake_quantize`, with a gradient for the scale s and the zero z too.

    dy/ds = rint(x/s) − x/s where nothing was clamped, else the end's code less the zero (LSQ, Esser et al. 2020, arXiv
    1902.08153). dy/dz = 0 where nothing was clamped, else −s, as if the zero had not been rounded (LSQ+, Bhalgat et al. 2020,
    arXiv 2004.09576, whose offset is −s·z).

    >>> from exactq.quantization.ranges import grid
    >>> from exactq.numerics.formats import UINT2
    >>> step = torch.tensor(0.5, requires_grad=True)
    >>> learned_quantize(torch.tensor([0.625, 9.0]), Learned(grid(0.0, 1.5, UINT2), step)).sum().backward()
    >>> step.grad.item()  # (1 − 1.25) + 3
    2.75
    """
    if at.step is None:
        return fake_quantize(x, at.grid)
    y, inside = rounded(x, at.grid)
    return _LearnedRounding.apply(x, at.step, at.zero, y, inside, at)


class _Substitute(torch.autograd.Function):
    """`given` in place of x; the gradient passes to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, given: Tensor) -> Tensor:
        return given

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def substitute(x: Tensor, given: Tensor) -> Tensor:
    """`given`, bit for bit, with the gradient of `x`, which it stands for: both of one shape.

    >>> x = torch.tensor([0.1], requires_grad=True)
    >>> y = substitute(3 * x, torch.tensor([0.5]))
    >>> y.backward()
    >>> y.item(), x.grad.item()
    (0.5, 3.0)
    """
    if x.shape != given.shape:
        raise ModelError(f"a value of shape {tuple(given.shape)} cannot stand for one of {tuple(x.shape)}")
    return _Substitute.apply(x, given)
