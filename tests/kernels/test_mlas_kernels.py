"""What the kernels promise apart from equality: certificates, storage, precision settings, shapes, errors, compilation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exactq.errors import ModelError, UsageError
from exactq.kernels import mlas, pairs, sums
from exactq.kernels.mlas import elementwise
from exactq.numerics.formats import INT8, INT16, UINT8, Format, Grid

SEED = int(os.environ.get("EXACTQ_SEED", "0"))


def grid(fmt: Format, scale: float = 1.0, zero: int = 0) -> Grid:
    return Grid(fmt, torch.tensor(scale), torch.tensor(zero, dtype=torch.int32))


def plain_convolution(x: Tensor, w: Tensor, *, zero: int, groups: int, saturate: bool) -> Tensor:
    """Σ over pairs in Python ints: valid padding, stride 1, K = (row, column, channel) with the channel fastest."""
    (n, _, high, wide), (out, into, rows, columns) = x.shape, w.shape
    y = torch.zeros((n, out, high - rows + 1, wide - columns + 1), dtype=torch.int64)
    for i, o, r, c in product(*map(range, y.shape)):
        base = o // (out // groups) * into
        taps = list(product(range(rows), range(columns), range(into)))
        raw = [int(x[i, base + ch, r + dr, c + dc]) for dr, dc, ch in taps]
        weights = [int(w[o, ch, dr, dc]) for dr, dc, ch in taps]
        terms = [a * b for a, b in zip(raw, weights, strict=True)] + [0] * (len(taps) % 2)
        twos = [a + b for a, b in zip(terms[::2], terms[1::2], strict=True)]
        twos = [min(max(p, -32768), 32767) for p in twos] if saturate else twos
        y[i, o, r, c] = sum(twos) - zero * sum(weights)
    return y


@pytest.mark.parametrize("isa", mlas.ISAS)
@pytest.mark.parametrize(("into", "out", "groups"), [(4, 6, 1), (3, 4, 1), (6, 4, 2), (4, 8, 4), (3, 3, 3)])
def test_accumulator_is_the_plain_sum_over_pairs(isa: str, into: int, out: int, groups: int) -> None:
    make = torch.Generator().manual_seed(SEED + into)
    x = torch.randint(100, 256, (2, into, 4, 4), generator=make, dtype=torch.uint8)
    w = torch.randint(-128, 128, (out, into // groups, 3, 2), generator=make, dtype=torch.int8)
    saturate = isa == "avx2" and not into == out == groups
    expected = plain_convolution(x, w, zero=7, groups=groups, saturate=saturate)
    acc = mlas.conv_accumulator(w, None, x=grid(UINT8, zero=7), w=grid(INT8), groups=groups, isa=isa)(x)
    assert torch.equal(acc.long(), expected)
    assert saturate == (not torch.equal(expected, plain_convolution(x, w, zero=7, groups=groups, saturate=False)))


# Pairs


def test_certificate_is_exact_for_all_pairs_of_weights() -> None:
    w = torch.arange(-128, 128)
    both = torch.cartesian_prod(w, w).to(torch.int8)  # (65536, 2): one pair a row
    ends = torch.tensor([0, 255])
    extremes = torch.cartesian_prod(ends, ends)  # a sum is linear in each code, so its ends are at the codes' ends
    reached = both.long() @ extremes.T
    saturates = ((reached > 32767) | (reached < -32768)).any(1, keepdim=True)
    assert torch.equal(mlas.saturating_pairs(both), saturates)
    positive, negative = both.long().clamp(min=0).sum(1), -both.long().clamp(max=0).sum(1)
    assert torch.equal(saturates[:, 0], (positive > mlas.PAIR_LIMIT) | (negative > mlas.PAIR_LIMIT))
    same_sign = (both.long().prod(1) > 0)[:, None]
    assert bool((same_sign | ~saturates).all())


def test_pairs_follow_the_kernel_order_channel_first() -> None:
    w = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    assert pairs.kernel_order(w)[0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert mlas.pair_sums(w).shape == (2, 6)
    assert mlas.pair_sums(w[:, :1, :1, :1]).tolist() == [[0], [12]]  # an odd K ends with a zero


def test_pair_sums_of_real_weights_are_real() -> None:
    w = torch.tensor([[0.25, -1.5, 0.5, 0.75]])
    assert mlas.pair_sums(w).tolist() == [[1.5, 1.25]]


@given(st.integers(0, 2**32 - 1))
def test_weights_that_cannot_saturate_give_the_same_integers_on_every_isa(seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    w = torch.randint(-64, 65, (3, 5), generator=make, dtype=torch.int8)
    x = torch.randint(0, 256, (4, 5), generator=make, dtype=torch.uint8)
    assert not mlas.saturating_pairs(w).any()
    first, *rest = (mlas.gemm_accumulator(w, None, x=grid(UINT8, zero=255), w=grid(INT8), isa=isa)(x) for isa in mlas.ISAS)
    assert all(torch.equal(first, other) for other in rest)


def test_saturation_beyond_512_pairs_an_output_stays_exact() -> None:
    w, x = torch.full((1, 4096), 127, dtype=torch.int8), torch.full((1, 4096), 255, dtype=torch.uint8)
    acc = mlas.gemm_accumulator(w, None, x=grid(UINT8), w=grid(INT8), isa="avx2")(x)
    assert acc.item() == 2048 * 32767
    dynamic = mlas.matmul_accumulator(a=grid(UINT8), b=grid(INT8), isa="avx2")(x, w.T)
    assert dynamic.item() == 2048 * 32767


def test_facts_of_the_instruction_sets() -> None:
    u8, s8 = grid(UINT8), grid(INT8)
    assert mlas.saturates("avx2", u8, s8)
    assert not mlas.saturates("avx2", u8, s8, depthwise=True)
    assert not any(mlas.saturates("avx2", x, w) for x, w in ((u8, u8), (s8, s8)))
    assert not mlas.saturates("avx512vnni", u8, s8)
    with pytest.raises(UsageError, match=r"unknown instruction set 'avx'.*avx2"):
        mlas.saturates("avx", u8, s8)


# Sums


@given(st.integers(0, 2**32 - 1), st.sampled_from([(0, 255), (-255, 0), (-128, 127), (-3, 65532)]))
def test_sums_are_exact_whole_in_runs_and_in_float64(seed: int, ends: tuple[int, int]) -> None:
    lo, hi = ends
    rng = np.random.default_rng(seed)
    limit = int(rng.choice([1, 127, 20000]))
    w = torch.from_numpy(rng.integers(-limit, limit + 1, (3, int(rng.choice([1, 7, 700])))))
    x = torch.from_numpy(rng.choice([lo, hi, 0], (2, w.shape[1])))
    bias = torch.from_numpy(rng.integers(-(2**31), 2**31, 3)) if seed % 2 else None
    exact = x @ w.T + (0 if bias is None else bias)
    total = sums.matrix_sums(w, bias, lo=lo, hi=hi)(x.float())
    assert torch.equal(total.long(), exact)
    assert float(exact.abs().max()) <= sums.largest(w, bias, lo, hi)
    if total.dtype == torch.float32:
        assert sums.largest(w, bias, lo, hi) <= sums.EXACT


def test_runs_cover_the_channels_in_order_and_each_is_exact() -> None:
    w = torch.randint(-128, 128, (8, 300, 3, 3), generator=torch.Generator().manual_seed(SEED))
    found = sums.runs(w, 0, 255)
    assert found is not None
    assert [n for run in found for n in range(run.start, run.stop)] == list(range(300))
    assert all(float(sums.reach(w[:, run], 0, 255).max()) <= sums.EXACT for run in found)
    assert sums.runs(torch.full((1, 1, 33, 33), 127), 0, 255) is None


@contextmanager
def set_to(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


SETTINGS = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "bf16 convolutions": lambda: set_to(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
    "bf16 products": lambda: set_to(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False, allow_tf32=None),
    "one thread": lambda: threads(1),
}


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")  # of the setting under test
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("batch", [1, 20])
def test_settings_of_torch_change_no_integer(setting: str, batch: int) -> None:
    make = torch.Generator().manual_seed(SEED)
    x = torch.randint(-30000, 30000, (batch, 4, 9, 9), generator=make)
    w = torch.randint(-40, 41, (16, 4, 3, 3), generator=make)
    ends, places = {"lo": -30000, "hi": 30000}, {"stride": (1, 1), "padding": (1,) * 4, "dilation": (1, 1), "groups": 1}
    convolution = sums.convolution_sums(w, None, **ends, **places)
    matrix = sums.matrix_sums(w.flatten(1)[:, :9], None, **ends)
    with SETTINGS[setting]():
        before = torch.backends.mkldnn.conv.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
        ours = convolution(x.float()), matrix(x.float())
        assert before == (torch.backends.mkldnn.conv.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision)
    assert torch.backends.nnpack.set_flags(True) == (True,)
    assert torch.equal(ours[0].double(), torch.conv2d(x.double(), w.double(), padding=1))
    assert torch.equal(ours[1].double(), x.double() @ w.flatten(1)[:, :9].T.double())


# Storage, shapes, errors


@pytest.mark.parametrize("storage", [torch.uint8, torch.int32, torch.float32])
def test_codes_come_in_any_storage_are_kept_and_leave_as_float32(storage: torch.dtype) -> None:
    x, y = grid(UINT8, 0.02, 3), grid(UINT8, 0.03, 200)
    codes = torch.arange(0, 256, 2, dtype=torch.uint8).reshape(1, 2, 8, 8)
    w = torch.tensor([[[[127]], [[127]]], [[[-3]], [[5]]]], dtype=torch.int8)
    kernels = [
        mlas.conv(w, None, x=x, w=grid(INT8, 0.01), y=y, isa="avx2"),
        mlas.gemm(w.reshape(1, 4).repeat(1, 2), None, x=x, w=grid(INT8, 0.01), y=y, isa="avx2"),
        lambda c: mlas.add(x, x, y)(c, c),
        lambda c: mlas.mul(x, x, y)(c, c),
        mlas.global_average_pool(x, y),
        mlas.average_pool(x, y, kernel=(2, 2), stride=(2, 2)),
        mlas.max_pool(kernel=(2, 2), stride=(2, 2)),
        mlas.sigmoid(x, y),
        mlas.leaky_relu(x, y, slope=0.1),
        lambda c: mlas.concat([x, y], y, axis=1)(c, c),
    ]
    given_codes = codes.to(storage)
    for kernel in kernels:
        ours = kernel(given_codes)
        assert ours.dtype == torch.float32
        assert torch.equal(ours, kernel(codes))
    assert torch.equal(given_codes.to(torch.uint8), codes)


def test_an_accumulator_is_not_overwritten_by_its_requantization() -> None:
    x, w = grid(UINT8), torch.ones(1, 2, dtype=torch.int8)
    real = mlas.gemm(w, None, x=x, w=grid(INT8), y=None, isa="avx2", alpha=0.5)
    codes = torch.tensor([[200.0, 100.0]])
    assert real(codes).item() == 150.0
    assert codes.tolist() == [[200.0, 100.0]]


def test_addition_is_the_same_by_formula_and_by_table() -> None:
    rng = np.random.default_rng(SEED)
    p, q = torch.arange(256.0)[:, None], torch.arange(256.0)[None, :]
    for _ in range(60):
        a, b, y = (
            grid(UINT8, float(s), int(z)) for s, z in zip(rng.uniform(0.01, 0.1, 3), rng.integers(0, 256, 3), strict=True)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(elementwise, "_neighbours", lambda fixed: iter(()))
            by_table = mlas.add(a, b, y)(p, q)
        ours = mlas.add(a, b, y)
        assert torch.equal(ours(p, q), by_table)


def test_scalar_operand_is_what_the_innermost_differing_axis_says() -> None:
    cases = {((2, 3), (2, 3)): None, ((2, 3), (3,)): None, ((2, 3), (2, 1)): "b", ((1,), (7,)): "a", ((2, 5, 1), (5, 1)): None}
    assert {shapes: mlas.elementwise.scalar_operand(*shapes) for shapes in cases} == cases


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlas.quantize_linear(grid(INT8.narrow)), "narrower than its storage"),
        (lambda: mlas.conv_accumulator(torch.ones(2, 2), None, x=grid(UINT8), w=grid(INT8), isa="avx2"), "one to three kernel"),
        (
            lambda: mlas.conv_accumulator(torch.ones(2, 2, 1, 1), None, x=grid(UINT8), w=uneven(UINT8), isa="avx2"),
            "differ between",
        ),
        (lambda: mlas.quantize_linear(uneven(INT8)), "one scale and zero for the whole tensor"),
        (
            lambda: mlas.conv(torch.ones(2, 2, 1), None, x=grid(UINT8), w=uneven(INT8, 3), y=grid(UINT8), isa="avx2"),
            "2 output channels",
        ),
        (
            lambda: mlas.conv_accumulator(torch.ones(2, 2, 1), None, x=grid(UINT8), w=grid(INT8), stride=(1, 1), isa="avx2"),
            "1 kernel axes",
        ),
        (lambda: mlas.global_average_pool(grid(UINT8, 300.0), grid(UINT8))(torch.zeros(1, 1, 1, 1)), "factor 300 must lie in"),
    ],
)
def test_what_the_runtime_cannot_do_is_refused(make: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()  # type: ignore[operator]


def uneven(fmt: Format, channels: int = 2) -> Grid:
    zero = torch.zeros(channels, dtype=torch.int32)
    if not fmt.signed:
        zero[0] = 1
    return Grid(fmt, torch.ones(channels), zero)


def test_sixteen_bit_codes_quantize_and_come_back() -> None:
    y = grid(INT16, 0.001, 5)
    x = torch.tensor([-40.0, -0.0005, 0.0, 0.0015, 33.0])
    assert mlas.quantize_linear(y)(x).tolist() == [-32768.0, 5.0, 5.0, 7.0, 32767.0]
    assert torch.equal(mlas.dequantize_linear(y)(torch.tensor([5, 1005])), torch.tensor([0.0, 1.0]))


def test_every_kernel_of_the_table_is_exported() -> None:
    assert {name for name, kernel in mlas.KERNELS.items() if getattr(mlas, name) is not kernel} == set()
    assert set(mlas.KERNELS) <= set(mlas.__all__)


def test_padding_of_one_number_an_axis_is_that_of_begins_and_ends() -> None:
    x, y = (
        Grid(UINT8, torch.tensor(0.5), torch.tensor(3, dtype=torch.int32)),
        Grid(UINT8, torch.tensor(2.0), torch.tensor(9, dtype=torch.int32)),
    )
    w = Grid(INT8, torch.tensor(0.25), torch.tensor(0, dtype=torch.int32))
    weight = torch.arange(-9, 9, dtype=torch.int8).reshape(1, 2, 3, 3)
    codes = torch.arange(2 * 4 * 5, dtype=torch.uint8).reshape(1, 2, 4, 5)
    short, long = (mlas.conv(weight, None, x=x, w=w, y=y, padding=p, isa="avx512vnni")(codes) for p in ((1, 2), (1, 2, 1, 2)))
    assert short.shape == (1, 1, 4, 7)
    assert torch.equal(short, long)
