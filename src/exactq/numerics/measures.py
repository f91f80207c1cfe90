"""How far two tensors are apart: noise, angle, and the answer they give."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exactq.errors import DataError


def sqnr_db(reference: Tensor, test: Tensor) -> float:
    """The signal-to-quantization-noise ratio 10·log10(Σ r² / Σ (r − t)²), in decibels, computed in float64.

    +inf where the two are equal, all zeros included; −inf where the reference is all zero and the test is not. Raises
    `DataError` for different shapes, no elements, and elements that are not finite.

    >>> sqnr_db(torch.tensor([10.0]), torch.tensor([9.0]))
    20.0
    """
    r, t = _pair(reference, test)
    return decibels(r.square().sum().item(), (r - t).square().sum().item())


def decibels(signal: float, noise: float) -> float:
    """10·log10(signal / noise) of two sums of squares: +inf without noise, −inf with noise alone, NaN as it comes."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def cosine(reference: Tensor, test: Tensor) -> float:
    """The cosine of the angle between the two, read as one vector each, in float64; errors as in `sqnr_db`.

    Two zero vectors are alike (1), a zero vector and another are not (0).

    >>> cosine(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0]))
    0.6
    """
    r, t = _pair(reference, test)
    lengths = (r.norm() * t.norm()).item()
    if lengths == 0:
        return float(not r.any() and not t.any())
    return max(-1.0, min(1.0, (r @ t).item() / lengths))


def agreement(reference: Tensor, test: Tensor, axis: int = -1) -> float:
    """The fraction of places where both have their largest element at the same index of `axis`; the first of equals counts.

    >>> agreement(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([[0.0, 9.0], [1.0, 3.0]]))
    0.5
    """
    _pair(reference, test)
    same = _first_largest(reference, axis) == _first_largest(test, axis)
    return float(same.double().mean())


def _first_largest(x: Tensor, axis: int) -> Tensor:
    # torch.argmax may return any of several largest elements.
    return (x == x.amax(axis, keepdim=True)).to(torch.uint8).cumsum(axis).eq(0).sum(axis)


def _pair(reference: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    if reference.shape != test.shape or not reference.numel():
        raise DataError(f"{tuple(reference.shape)} and {tuple(test.shape)} cannot be compared: shapes must be equal, not empty")
    r, t = reference.detach().reshape(-1).double(), test.detach().reshape(-1).double()
    for name, x in (("reference", r), ("test", t)):
        if not bool(torch.isfinite(x).all()):
            index = int((~torch.isfinite(x)).nonzero()[0])
            raise DataError(f"the {name} has {x[index].item()} at flat index {index}: only finite elements can be compared")
    return r, t
