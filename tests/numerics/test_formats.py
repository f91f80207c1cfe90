"""Formats and grids: which codes exist, how reals find them, and how parameters spread over a tensor."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exactq.errors import ModelError, UsageError
from exactq.numerics.formats import FORMATS, INT4, INT8, INT32, UINT4, UINT8, Format, Grid, expand, format_named, spelled


def grid(fmt: Format, scale: float = 1.0, zero: int = 0) -> Grid:
    return Grid(fmt, torch.tensor(scale), torch.tensor(zero, dtype=torch.int32))


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_the_whole_range_of_its_storage_and_its_name_comes_back(name: str) -> None:
    fmt = FORMATS[name]
    assert fmt.name == name
    assert fmt.hi - fmt.lo + 1 == 2**fmt.bits
    assert fmt.signed == name.startswith("int")
    for form in (fmt, fmt.narrow):
        assert format_named(spelled(form)) == form
        held = torch.iinfo(form.dtype)
        assert held.min <= form.lo
        assert form.hi <= held.max
    assert fmt.narrow.lo == (-fmt.hi if fmt.signed else 0)


def test_a_format_that_does_not_fit_its_bits_is_refused() -> None:
    for bits, lo, hi in ((8, -129, 127), (8, 0, 256), (4, -8, 8), (8, 5, 5)):
        with pytest.raises(ModelError, match=f"does not fit {bits} bits"):
            Format(bits, lo, hi)
    with pytest.raises(UsageError, match="did you mean 'int8'"):
        format_named("itn8")
    with pytest.raises(UsageError, match="unknown format 'uint8-narrow'"):
        format_named("uint8-narrow")
    with pytest.raises(ModelError, match="has no name"):
        spelled(Format(8, -5, 5))


@pytest.mark.parametrize(
    ("scale", "zero", "message"),
    [
        (torch.tensor(1.0), torch.tensor(0), "int32 zero"),
        (torch.tensor(1.0, dtype=torch.float64), torch.tensor(0, dtype=torch.int32), "float32 scale"),
        (torch.ones(2), torch.tensor(0, dtype=torch.int32), "one shape"),
        (torch.tensor(0.0), torch.tensor(0, dtype=torch.int32), "finite positive"),
        (torch.tensor(torch.nan), torch.tensor(0, dtype=torch.int32), "finite positive"),
        (torch.tensor(torch.inf), torch.tensor(0, dtype=torch.int32), "finite positive"),
        (torch.tensor(1.0), torch.tensor(256, dtype=torch.int32), "is no code"),
    ],
)
def test_an_invalid_grid_does_not_exist(scale: torch.Tensor, zero: torch.Tensor, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Grid(UINT8, scale, zero)


def plain_encode(x: float, scale: float, zero: int, fmt: Format) -> int:
    """clamp(round-half-even(fl32(x / scale))) + zero in Fractions, the quotient rounded to float32 once."""
    steps = float(torch.tensor(x) / torch.tensor(scale))
    if steps != steps or steps == float("-inf"):
        return fmt.lo
    if steps == float("inf"):
        return fmt.hi
    return min(max(round(Fraction(steps)) + zero, fmt.lo), fmt.hi)


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=20),
    st.floats(2.0**-20, 2.0**20, width=32),
    st.integers(0, 255),
    st.sampled_from([UINT8, INT8, INT4, UINT4, INT32, INT8.narrow]),
)
def test_encode_is_the_plain_definition(xs: list[float], scale: float, seed: int, fmt: Format) -> None:
    zero = fmt.lo + seed % (fmt.hi - fmt.lo + 1)
    xs += [(k + 0.5) * scale for k in (-2, -1, 0, 1)] if scale < 1e6 else []
    codes = grid(fmt, scale, zero).encode(torch.tensor(xs))
    assert codes.dtype == fmt.dtype
    assert codes.tolist() == [plain_encode(float(x), scale, zero, fmt) for x in torch.tensor(xs)]


@pytest.mark.parametrize("fmt", [UINT8, INT8, INT4.narrow])
@pytest.mark.parametrize("zero", [0, 1, 7])
@pytest.mark.parametrize("scale", [1e-3, 0.25, 0.1, 3e5])
def test_codes_come_back_and_zero_is_exact_and_error_is_at_most_half_a_step(fmt: Format, zero: int, scale: float) -> None:
    g = grid(fmt, scale, zero)
    codes = torch.arange(fmt.lo, fmt.hi + 1)
    assert torch.equal(g.encode(g.decode(codes)).long(), codes)
    assert g.decode(torch.tensor([zero])).item() == 0
    x = torch.linspace((fmt.lo - zero) * scale, (fmt.hi - zero) * scale, 1001)
    ulps = 3 * 2**-24 * float(x.abs().max())
    assert float((g.decode(g.encode(x)) - x).abs().max()) <= 0.5 * g.scale.item() + ulps


def test_tensor_channel_and_block_grids_are_one_case() -> None:
    x = torch.arange(8.0).reshape(2, 4)
    for shape in ((), (2, 1), (1, 4), (2, 2), (2, 4)):
        scale = torch.linspace(0.5, 2.0, max(1, int(torch.tensor(shape).prod()))).reshape(shape)
        g = Grid(UINT8, scale, torch.ones(shape, dtype=torch.int32))
        full = expand(scale, x.shape).broadcast_to(x.shape)
        each = [plain_encode(float(v), float(s), 1, UINT8) for v, s in zip(x.flatten(), full.flatten(), strict=True)]
        assert g.encode(x).flatten().tolist() == each
        assert torch.equal(g.decode(g.encode(x)), (g.encode(x).float() - 1) * full)


def test_a_parameter_that_does_not_divide_is_refused() -> None:
    for shape in ((3, 1), (2,), (2, 4, 1)):
        with pytest.raises(ModelError, match="does not divide"):
            expand(torch.ones(shape), (2, 4))


def test_a_grid_says_what_it_is() -> None:
    assert repr(grid(INT8, 0.5, -3)) == "Grid(int8, scale=0.5, zero=-3)"
    assert repr(Grid(INT8, torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.int32))) == "Grid(int8, scale=1, zero=0 ×4)"
