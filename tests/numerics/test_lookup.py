"""Tables of codes: every entry is the function at its code."""

from __future__ import annotations

import pytest
import torch

from exactq.numerics.formats import INT4, INT8, UINT8, Format
from exactq.numerics.lookup import all_codes, look_up, look_up_pair


@pytest.mark.parametrize("fmt", [INT4, INT8, UINT8, INT8.narrow])
@pytest.mark.parametrize("storage", [torch.float32, torch.int16])
def test_a_table_is_its_function_on_all_codes(fmt: Format, storage: torch.dtype) -> None:
    codes = all_codes(fmt)
    assert codes.tolist() == list(range(fmt.lo, fmt.hi + 1))
    square = look_up(codes.square(), fmt)
    shaped = codes.to(storage).reshape(-1, 1).expand(-1, 2)
    assert torch.equal(square(shaped), shaped.float().square())


@pytest.mark.parametrize(("a", "b"), [(UINT8, UINT8), (INT8, UINT8), (INT8, INT8.narrow), (INT4, INT8)])
def test_a_table_of_pairs_is_its_function_on_all_pairs(a: Format, b: Format) -> None:
    p, q = all_codes(a)[:, None], all_codes(b)[None, :]
    table = look_up_pair(p * 1000 - q, a, b)
    assert torch.equal(table(p, q), p * 1000 - q)
    assert torch.equal(table(p.to(torch.int16), q.to(torch.int16)), p * 1000 - q)
