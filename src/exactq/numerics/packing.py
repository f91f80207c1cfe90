"""Sub-byte codes in bytes: the first code in the lowest bits (ONNX INT4/UINT4, MatMulNBits, TFLite int4)."""

from __future__ import annotations

import torch
from torch import Tensor

from exactq.errors import DataError
from exactq.numerics.formats import Format


def pack(codes: Tensor, fmt: Format) -> Tensor:
    """The codes of the last axis in uint8, 8/bits to a byte, the first in the lowest bits; a short last byte ends in zeros.

    Raises `DataError` for codes outside the format, and for formats that do not divide a byte.

    >>> from exactq.numerics.formats import INT4
    >>> [hex(b) for b in pack(torch.tensor([1, -1, 7]), INT4).tolist()]
    ['0xf1', '0x7']
    """
    per_byte = _per_byte(fmt)
    if codes.numel() and (int(codes.min()) < fmt.lo or int(codes.max()) > fmt.hi):
        raise DataError(f"codes {int(codes.min())}..{int(codes.max())} do not fit {fmt!r}: clamp them before packing")
    fields = codes.to(torch.int32) & (2**fmt.bits - 1)
    short = -fields.shape[-1] % per_byte
    fields = torch.nn.functional.pad(fields, (0, short)).unflatten(-1, (-1, per_byte))
    shifts = torch.arange(per_byte, device=codes.device, dtype=torch.int32) * fmt.bits
    return (fields << shifts).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, fmt: Format, length: int) -> Tensor:
    """The first `length` codes of each row that `pack` wrote, in the format's dtype.

    >>> from exactq.numerics.formats import INT4
    >>> unpack(torch.tensor([0xF1, 0x07], dtype=torch.uint8), INT4, 3)
    tensor([ 1, -1,  7], dtype=torch.int8)
    """
    per_byte = _per_byte(fmt)
    if packed.shape[-1] != -(-length // per_byte):
        raise DataError(f"{length} codes of {fmt.bits} bits take {-(-length // per_byte)} bytes, not {packed.shape[-1]}")
    shifts = torch.arange(per_byte, device=packed.device, dtype=torch.int32) * fmt.bits
    fields = (packed.to(torch.int32).unsqueeze(-1) >> shifts) & (2**fmt.bits - 1)
    if fmt.signed:
        sign = 2 ** (fmt.bits - 1)
        fields = (fields ^ sign) - sign
    return fields.flatten(-2)[..., :length].to(fmt.dtype)


def _per_byte(fmt: Format) -> int:
    if fmt.bits not in (1, 2, 4, 8):
        raise DataError(f"{fmt!r} does not divide a byte: only 2, 4 and 8 bits are packed")
    return 8 // fmt.bits
