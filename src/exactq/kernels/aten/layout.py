"""Where a vector loop ends: the codes left over at the end of memory are made by another function.

Codes lie densely, images with their channels last (the target's loader sees to it), so where memory ends follows from shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exactq.kernels.accumulators import Kernel


def in_memory(codes: Tensor) -> Tensor:
    """A view of the codes whose axes are in the order of memory: channels last for images of two and three axes."""
    return codes.movedim(1, -1) if codes.ndim in (4, 5) else codes


def tailed(body: Callable[..., Tensor], tail: Callable[..., Tensor], *, block: int) -> Callable[..., Tensor]:
    """The elementwise function that is `body` for whole blocks of memory and `tail` for the elements left over at its end."""

    def apply(*codes: Tensor) -> Tensor:
        made = body(*codes)
        whole, size = made.numel() // block * block, made.numel()
        if whole < size:
            view = in_memory(made)
            at = torch.unravel_index(torch.arange(whole, size, device=made.device), view.shape)
            view[at] = tail(*(in_memory(c)[at] for c in codes))
        return made

    return apply


def channels_tailed(body: Kernel, tail: Kernel, *, block: int) -> Kernel:
    """As `tailed`, for a loop over the channels of one pixel: the last channels are left over."""

    def apply(values: Tensor) -> Tensor:
        whole = values.shape[1] // block * block
        if whole == 0:
            return tail(values)
        made = body(values)
        if whole < values.shape[1]:
            made[:, whole:] = tail(values[:, whole:])
        return made

    return apply
