"""Pair-safe weights: certified beside loops over Python ints, safe at every input, and better than 7 bits."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exactq.errors import ModelError
from exactq.kernels.pairs import kernel_order
from exactq.numerics.formats import INT4, INT8, Format
from exactq.numerics.measures import sqnr_db
from exactq.quantization.nearest import minmax_grid, mse_grid
from exactq.quantization.pairsafe import certified, depthwise, pairsafe_grid
from exactq.quantization.ranges import grid


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plainly_safe(codes: torch.Tensor) -> bool:
    """Whether no u8 input saturates, with Python ints: the worst input is 255 where a weight helps and 0 where not."""
    for channel in codes.tolist():
        if codes.ndim == 4:
            taps = itertools.product(range(codes.shape[2]), range(codes.shape[3]), range(codes.shape[1]))
            row = [channel[c][y][x] for y, x, c in taps]
        else:
            row = list(channel)
        row += [0] * (len(row) % 2)
        for w0, w1 in zip(row[::2], row[1::2], strict=True):
            up, down = 255 * (max(w0, 0) + max(w1, 0)), 255 * (min(w0, 0) + min(w1, 0))
            if up > 32767 or down < -32768:
                return False
    return True


SHAPES = [(6, 32), (6, 7), (4, 8, 3, 3), (4, 3, 3, 3), (4, 1, 3, 3), (4, 5, 1, 1), (3, 1), (8, 2, 5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fmt", [INT8.narrow, INT8])
@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("make", [minmax_grid, mse_grid])
def test_codes_are_safe_and_scales_no_smaller(shape: tuple[int, ...], fmt: Format, axis: int | None, make: object) -> None:
    for seed in range(4):
        w = normal(*shape, seed=seed)
        before = make(w, fmt, axis)  # type: ignore[operator]
        g = pairsafe_grid(w, before)
        codes = g.encode(w)
        assert plainly_safe(codes)
        assert bool((g.scale >= before.scale).all())
        assert bool((g.scale <= (w.abs().max() / 64).maximum(before.scale)).all())
        assert torch.equal(g.encode(g.decode(codes)), codes)
        if plainly_safe(before.encode(w)):
            assert torch.equal(g.scale, before.scale)


@settings(max_examples=100)
@given(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=8))
def test_any_weights_can_be_made_safe(x: list[float]) -> None:
    w = torch.tensor([x])
    assert plainly_safe(pairsafe_grid(w, minmax_grid(w, INT8.narrow, 0)).encode(w))


@pytest.mark.parametrize("value", [1.0, 0.1, 1e-30, 3e-17, 1e20])
def test_equal_weights_end_at_codes_of_64(value: float) -> None:
    w = torch.full((2, 6), value)
    g = pairsafe_grid(w, minmax_grid(w, INT8.narrow, 0))
    assert g.encode(w).max().item() <= 64
    assert plainly_safe(g.encode(w))


def test_only_violating_channels_change() -> None:
    w = torch.tensor([[1.0, -1.0, 1.0, 0.005], [1.0, 1.0, 0.0, 0.0], [1.0, 0.3, -0.2, 0.1]])
    before = minmax_grid(w, INT8.narrow, 0)
    after = pairsafe_grid(w, before)
    assert (after.scale != before.scale).flatten().tolist() == [False, True, True]


def test_depthwise_layers_keep_their_scales_and_others_with_one_channel_a_group_do_not() -> None:
    w = normal(8, 1, 3, 3)
    before = minmax_grid(w, INT8.narrow, 0)
    assert not plainly_safe(before.encode(w))
    assert pairsafe_grid(w, before, groups=8) is before
    assert plainly_safe(pairsafe_grid(w, before, groups=4).encode(w)), "two outputs a group are no depthwise kernel"
    assert not depthwise(normal(1, 1, 3, 3), 1), "nor is a layer of one group"


def test_the_certificate_is_exact_for_every_pair() -> None:
    a = torch.arange(-128, 128, dtype=torch.int8)
    codes = torch.stack(torch.meshgrid(a, a, indexing="ij"), -1).reshape(-1, 2)
    x = torch.tensor([0, 255])
    sums = torch.stack([p * codes[:, 0].int() + q * codes[:, 1].int() for p in x for q in x])
    exact = ((sums <= 32767) & (sums >= -32768)).all(0)
    assert torch.equal(certified(codes), exact)
    assert torch.equal(certified(codes.float()), exact)


def test_four_bit_weights_are_safe_as_they_are() -> None:
    w = normal(5, 30)
    g = minmax_grid(w, INT4.narrow, 0)
    assert torch.equal(pairsafe_grid(w, g).scale, g.scale)


def smallest_safe(w: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """The plain way: bisect each channel between its nearest scale and the one of 7-bit codes, then step up until safe."""
    rows = kernel_order(w)

    def bad(scale: torch.Tensor) -> torch.Tensor:
        return ~certified(torch.round(rows / scale).clamp(-127, 127))[:, None]

    lo, hi = start.clone(), rows.abs().amax(1, keepdim=True) / 64
    for _ in range(18):
        middle = (lo + hi) / 2
        lo, hi = torch.where(bad(middle), middle, lo), torch.where(bad(middle), hi, middle)
    return torch.where(bad(start), hi, start)


@pytest.mark.parametrize("kind", ["normal", "peaked"])
def test_less_is_lost_than_with_the_smallest_safe_scales_and_far_less_than_with_seven_bits(kind: str) -> None:
    w = normal(64, 64, 3, 3)
    if kind == "peaked":
        w = w.sign() * w.abs() * normal(64, 64, 3, 3, seed=1).abs()
    full = minmax_grid(w, INT8.narrow, 0)
    safe = pairsafe_grid(w, full)
    plain, seven = (x.reshape(-1, 1, 1, 1) for x in (smallest_safe(w, full.scale.flatten(1)), w.abs().amax((1, 2, 3)) / 64))
    full_db, safe_db = (sqnr_db(w, g.decode(g.encode(w))) for g in (full, safe))
    plain_db, seven_db = (sqnr_db(w, torch.round(w / s).clamp(-127, 127) * s) for s in (plain, seven))
    assert full_db > safe_db > plain_db > seven_db
    assert safe_db - seven_db > 0.5 * (full_db - seven_db)


def test_what_has_no_certificate_is_refused() -> None:
    w = normal(4, 4)
    with pytest.raises(ModelError, match="signed weights of up to 8 bits with zero 0"):
        pairsafe_grid(w, grid(-1.0, 2.0, INT8))
    with pytest.raises(ModelError, match="a scale a channel of axis 0"):
        pairsafe_grid(w, minmax_grid(w, INT8.narrow, 1))
