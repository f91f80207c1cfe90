"""Packing: the first code in the lowest bits, and every code comes back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exactq.errors import DataError
from exactq.numerics.formats import INT2, INT3, INT4, INT8, UINT2, UINT4, Format
from exactq.numerics.packing import pack, unpack


@given(st.sampled_from([INT2, INT4, INT4.narrow, INT8, UINT2, UINT4]), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_codes_come_back_and_bytes_are_the_plain_ones(fmt: Format, length: int, seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    codes = torch.randint(fmt.lo, fmt.hi + 1, (3, length), generator=make)
    packed = pack(codes, fmt)
    per_byte = 8 // fmt.bits
    plain = [
        [
            sum((c % 2**fmt.bits) << (fmt.bits * i) for i, c in enumerate(row[at : at + per_byte]))
            for at in range(0, length, per_byte)
        ]
        for row in codes.tolist()
    ]
    assert packed.dtype == torch.uint8
    assert packed.tolist() == plain
    back = unpack(packed, fmt, length)
    assert back.dtype == fmt.dtype
    assert torch.equal(back.long(), codes)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="do not fit"):
        pack(torch.tensor([8]), INT4)
    with pytest.raises(DataError, match="does not divide a byte"):
        pack(torch.tensor([1]), INT3)
    with pytest.raises(DataError, match="5 codes of 4 bits take 3 bytes, not 2"):
        unpack(torch.zeros(2, dtype=torch.uint8), INT4, 5)


def test_nothing_packs_to_nothing() -> None:
    assert pack(torch.empty(2, 0, dtype=torch.int8), INT4).shape == (2, 0)
