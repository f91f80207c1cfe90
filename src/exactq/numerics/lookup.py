"""Functions of codes as tables: 256 entries for one 8-bit operand, 65,536 for two."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exactq.numerics.formats import Format


def all_codes(fmt: Format) -> Tensor:
    """Every code of the format in ascending order, float32.

    >>> from exactq.numerics.formats import INT2
    >>> all_codes(INT2)
    tensor([-2., -1.,  0.,  1.])
    """
    return torch.arange(fmt.lo, fmt.hi + 1, dtype=torch.float32)


def look_up(entries: Tensor, fmt: Format) -> Callable[[Tensor], Tensor]:
    """The function on codes of `fmt` whose value at `all_codes(fmt)[i]` is `entries[i]`.

    >>> from exactq.numerics.formats import INT2
    >>> look_up(torch.tensor([4.0, 1.0, 0.0, 1.0]), INT2)(torch.tensor([-2, 1], dtype=torch.int8))
    tensor([4., 1.])
    """
    entries = entries.contiguous()

    def apply(codes: Tensor) -> Tensor:
        return entries.to(codes.device)[codes.to(torch.int32) - fmt.lo]

    return apply


def look_up_pair(entries: Tensor, fmt_a: Format, fmt_b: Format) -> Callable[[Tensor, Tensor], Tensor]:
    """The function on two broadcasting tensors of codes with value `entries[i, j]` at code i of `fmt_a` and j of `fmt_b`."""
    wide = fmt_b.hi - fmt_b.lo + 1
    offset = fmt_a.lo * wide + fmt_b.lo
    flat = entries.reshape(-1).contiguous()

    def apply(a: Tensor, b: Tensor) -> Tensor:
        # Below 2¹⁷ and so exact in float32.
        index = torch.add(b.to(torch.float32), a.to(torch.float32), alpha=wide)
        return flat.to(index.device)[index.to(torch.int32) - offset]

    return apply
