"""The engines' kernels beside their arithmetic written out in Fractions and Python integers, and what a kernel refuses."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exactq.errors import ModelError
from exactq.kernels import aten, fbgemm, inductor, onednn, qnnpack
from exactq.numerics.formats import INT8, UINT8, Grid


def fl(x: Fraction) -> Fraction:
    """`x` rounded to the nearest float32, ties to even."""
    if x == 0:
        return x
    step = Fraction(2) ** ((abs(x).numerator.bit_length() - abs(x).denominator.bit_length()) - 25)
    while abs(x) / step >= 2**24:
        step *= 2
    return round(x / step) * step  # Fraction rounds halves to even


def test_fl_is_numpys_rounding() -> None:
    rng = np.random.default_rng(0)
    for a, b in rng.integers(1, 2**40, (200, 2)).tolist():
        assert fl(Fraction(a, b)) == Fraction(float(np.float32(np.longdouble(a) / np.longdouble(b))))
    assert fl(Fraction(2**24 + 1)) == 2**24
    assert fl(Fraction(2**24 + 3)) == 2**24 + 4


def clamp(steps: Fraction, zero: int) -> int:
    return min(max(round(steps) + zero, 0), 255)


def plain_fbgemm(acc: int, b: Fraction, sx: Fraction, sw: Fraction, sy: Fraction, zy: int, *, channels: bool) -> int:
    s = fl(sx * sw)
    v = fl(fl(Fraction(acc)) + fl(b / s)) if channels else fl(fl(Fraction(acc)) + b * fl(1 / s))
    return clamp(fl(v * fl(s / sy)), zy)


def plain_qnnpack(acc: int, b: Fraction, sx: Fraction, sw: Fraction, sy: Fraction, zy: int, *, channels: bool) -> int:
    code = round(fl(b * fl(1 / fl(sx * sw))))
    return clamp(fl(fl(Fraction(acc + code)) * fl(fl(sw * sx) * fl(1 / sy))), zy)


def plain_onednn(acc: int, b: Fraction, sx: Fraction, sw: Fraction, sy: Fraction, zy: int, *, isa: str, layer: str) -> int:
    rx, ry = (fl(1 / fl(1 / s)) for s in (sx, sy))
    rw = sw if layer == "conv" else fl(1 / fl(1 / sw))
    v = fl(fl(fl(Fraction(acc)) * rx) * rw) if isa == "avx512vnni" else fl(fl(Fraction(acc)) * fl(rx * rw))
    return round(min(max(fl(fl(fl(v + b) * fl(1 / ry)) + zy), Fraction(0)), Fraction(255)))


def grid(scale: float, zero: int = 0) -> Grid:
    return Grid(UINT8, torch.tensor(scale, dtype=torch.float32), torch.tensor(zero, dtype=torch.int32))


def exact(value: object) -> Fraction:
    return Fraction(float(value))  # type: ignore[arg-type]


@given(st.integers(0, 2**32 - 1))
def test_layers_equal_the_plain_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth, channels = int(rng.integers(1, 9)), bool(rng.integers(2))
    x, w = rng.integers(0, 128, depth), rng.integers(-128, 128, (3, depth))
    sx, sy = (np.float32(v) for v in rng.uniform(0.005, 0.02, 2))
    sw = rng.uniform(0.005, 0.02, 3 if channels else 1).astype(np.float32)
    if seed % 2:  # half steps, but for the rounding of the scales
        w = w % 4
        sw = (float(sw[0]) * (1 + rng.integers(-3, 4, len(sw)) * 2.0**-23)).astype(np.float32)
        sy = np.float32(2 * float(sx) * float(sw[0]))
    bias = (rng.integers(-60, 60, 3) * 0.5 * float(sy)).astype(np.float32)
    zx, zy = int(rng.integers(0, 60)), int(rng.integers(0, 256))
    acc = ((x - zx) @ w.T).tolist()
    scales = torch.from_numpy(sw).reshape(-1, 1) if channels else torch.tensor(float(sw[0]))
    grids = {"x": grid(float(sx), zx), "y": grid(float(sy), zy)}
    grids["w"] = Grid(INT8, scales, torch.zeros_like(scales, dtype=torch.int32))
    weight, b, codes = torch.from_numpy(w).to(torch.int8), torch.from_numpy(bias), torch.from_numpy(x[None]).to(torch.uint8)
    told = [(acc[c], exact(bias[c]), exact(sx), exact(sw[c % len(sw)]), exact(sy), zy) for c in range(3)]
    plain = {
        "fbgemm": [plain_fbgemm(*t, channels=channels) for t in told],
        "qnnpack": [plain_qnnpack(*t, channels=channels) for t in told],
        **{isa: [plain_onednn(*t, isa=isa, layer="linear") for t in told] for isa in onednn.SATURATES},
    }
    ours = {
        "fbgemm": fbgemm.linear(weight, b, **grids, isa="avx512vnni")(codes),
        "qnnpack": qnnpack.linear(weight, b, **grids)(codes),
        **{isa: onednn.linear(weight, b, **grids, isa=isa)(codes) for isa in onednn.SATURATES},
    }
    assert {name: made[0].long().tolist() for name, made in ours.items()} == plain


def sat16(n: int) -> int:
    return min(max(n, -32768), 32767)


def plain_pairs(x: np.ndarray, w: np.ndarray, zero: int, *, within_taps: bool) -> int:
    """Σ of saturated pairs of one window (channel, height, width), less what the zero adds; padding is −1 in `x`."""
    terms: list[tuple[int, int]] = []
    for i, j in itertools.product(range(w.shape[1]), range(w.shape[2])):
        outside = x[0, i, j] < 0
        raw = [0 if outside and within_taps else zero if outside else int(n) for n in x[:, i, j]]
        terms += zip(raw, w[:, i, j].tolist(), strict=True)
        if within_taps and len(terms) % 2:
            terms.append((0, 0))
    terms += [(0, 0)] * (len(terms) % 2)
    pairs = zip(terms[::2], terms[1::2], strict=True)
    total = sum(sat16(a * b + c * d) for (a, b), (c, d) in pairs)
    inside = (x >= 0) if within_taps else np.ones_like(x, bool)
    return total - zero * int((w * inside).sum())


@given(st.integers(0, 2**32 - 1), st.sampled_from(["fbgemm", "onednn"]))
def test_saturating_convolutions_equal_a_plain_loop(seed: int, library: str) -> None:
    rng = np.random.default_rng(seed)
    channels, zero = int(rng.integers(1, 5)), int(rng.choice([0, 255, 130]))
    x = rng.choice([255, 254, 200, 0], (channels, 3, 3), p=[0.6, 0.2, 0.1, 0.1])
    w = rng.choice([127, -128, 100, -3], (1, channels, 2, 2))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    sums = [
        plain_pairs(padded[:, i : i + 2, j : j + 2], w[0], zero, within_taps=library == "onednn")
        for i, j in itertools.product(range(4), repeat=2)
    ]
    scale = np.float32(max(map(abs, sums)) / 120 + 1)
    grids = {"x": grid(1.0, zero), "w": Grid(INT8, torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int32))}
    grids["y"] = grid(float(scale), 128)
    kernels = {"fbgemm": fbgemm, "onednn": onednn}
    weight, codes = torch.from_numpy(w).to(torch.int8), torch.from_numpy(x[None]).to(torch.uint8)
    made = kernels[library].conv(weight, None, **grids, padding=(1,), isa="avx2")(codes)
    one = Fraction(1)
    if library == "fbgemm":
        wanted = [plain_fbgemm(n, Fraction(0), one, one, exact(scale), 128, channels=True) for n in sums]
    else:
        wanted = [plain_onednn(n, Fraction(0), one, one, exact(scale), 128, isa="avx2", layer="conv") for n in sums]
    assert made.flatten().long().tolist() == wanted


def test_a_zero_inside_the_rounding_turns_ties_by_its_parity() -> None:
    halves = torch.tensor([0.5, 1.5, 2.5])
    assert [aten.quantize_per_tensor(grid(1.0, zero))(halves).tolist() for zero in (2, 3)] == [[2.0, 4.0, 4.0], [4.0, 4.0, 6.0]]


def test_the_fast_depthwise_kernel_saturates_on_every_instruction_set() -> None:
    weight, x = torch.full((8, 1, 3, 3), 127, dtype=torch.int8), torch.full((1, 8, 3, 3), 255, dtype=torch.uint8)
    flat = torch.zeros(8, 1, 1, 1)
    grids = {"x": grid(1.0), "w": Grid(INT8, flat + 1, flat.int()), "y": grid(2048.0)}

    def middle(padding: int, isa: str) -> float:
        places = {"padding": (padding,), "groups": 8, "isa": isa}
        return float(fbgemm.conv(weight, None, **grids, **places)(x)[0, 0, padding, padding])  # type: ignore[arg-type]

    # 4 pairs of 2·255·127 become 32767 each, the ninth product stands alone.
    assert {isa: middle(1, isa) for isa in fbgemm.SATURATES} == {"avx2": 80.0, "avx512vnni": 80.0}
    assert {isa: middle(0, isa) for isa in fbgemm.SATURATES} == {"avx2": 80.0, "avx512vnni": 142.0}


def test_codes_left_over_at_the_end_of_memory_are_made_otherwise() -> None:
    a, y = grid(0.5, 0), grid(1.0, 1)
    codes = torch.ones(65, dtype=torch.uint8)  # 0.5 + 0: half a step, and the zero is odd
    made = aten.add(a, a, y)(codes, torch.zeros_like(codes))
    assert made.tolist() == [1.0] * 64 + [2.0]
    image = torch.ones(1, 65, 1, 1, dtype=torch.uint8)
    assert aten.add(a, a, y)(image, torch.zeros_like(image)).flatten().tolist() == [1.0] * 64 + [2.0]


def test_sums_that_qnnpack_refuses_are_refused() -> None:
    assert not qnnpack.adds(grid(1.0), grid(1.0), grid(2.0**-8))
    with pytest.raises(ModelError, match=r"QNNPACK adds codes whose scales are 2\^-14..2\^8 times the sum's"):
        qnnpack.add(grid(1.0), grid(1.0), grid(2.0**-8))


@given(st.integers(0, 2**32 - 1))
def test_a_convolution_that_adds_equals_the_plain_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w, q = rng.integers(0, 128, 5), rng.integers(-128, 128, 5), int(rng.integers(256))
    sx, sw, sa = (np.float32(v) for v in rng.uniform(0.005, 0.02, 3))
    sy = np.float32(float(sa) * rng.choice([0.5, 1, 2, 1.37]))
    b, za, zy = np.float32(rng.normal()), int(rng.integers(256)), int(rng.integers(256))
    acc, relu, inverted = int(x @ w), bool(rng.integers(2)), bool(rng.integers(2))

    def handed(scale: np.float32) -> Fraction:
        return fl(1 / fl(1 / exact(scale))) if inverted else exact(scale)

    grids = {"x": grid(float(sx)), "y": grid(float(sy), zy), "added": grid(float(sa), za)}
    grids["w"] = Grid(INT8, torch.tensor(float(sw)), torch.tensor(0, dtype=torch.int32))
    weight, codes = torch.from_numpy(w).to(torch.int8).reshape(1, 5, 1, 1), torch.from_numpy(x).reshape(1, 5, 1, 1)
    for isa in onednn.SATURATES:
        kernel = onednn.conv_add(weight, torch.tensor([b]), **grids, relu=relu, inverted=inverted, isa=isa)
        rx, rw = handed(sx), exact(sw)
        v = fl(fl(fl(Fraction(acc)) * rx) * rw) if isa == "avx512vnni" else fl(fl(Fraction(acc)) * fl(rx * rw))
        v = fl(fl(v + exact(b)) + (q - za) * handed(sa))
        wanted = fl(fl((max(v, Fraction(0)) if relu else v) * fl(1 / handed(sy))) + zy)
        assert int(kernel(codes, torch.full((1, 1, 1, 1), q))) == round(min(max(wanted, Fraction(0)), Fraction(255)))


@given(st.integers(0, 2**32 - 1))
def test_four_roundings_equal_the_plain_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    s, zero = np.float32(2.0 ** rng.integers(-4, 3) * rng.choice([1, 1, rng.uniform(0.5, 1)])), int(rng.integers(256))
    x = (rng.integers(-600, 600, 20) * 0.5 * s).astype(np.float32)
    inverse = fl(1 / exact(s))
    steps = [fl(exact(v) * inverse) for v in x]

    def ends(codes: list[int]) -> list[int]:
        return [min(max(c, 0), 255) for c in codes]

    at, reals = grid(float(s), zero), torch.from_numpy(x)
    assert aten.quantize_per_tensor(at)(reals).tolist() == ends([round(fl(exact(v) * inverse + zero)) for v in x])
    assert aten.quantize_per_channel(at)(reals).tolist() == ends([round(fl(n + zero)) for n in steps])
    outside = ends([round(n) + zero for n in steps])
    assert aten.quantize_decomposed(at)(reals).tolist() == outside
    fake = [float(fl((c - zero) * exact(s))) for c in outside]
    assert aten.fake_quantize_per_tensor(at)(reals).tolist() == fake
    assert aten.fake_quantize_per_channel(at)(reals).tolist() == fake


def test_a_channel_of_fake_quantization_loses_what_int64_cannot_hold() -> None:
    reals, at = torch.tensor([2.0**40, 2.0**62, 2.0**63, torch.inf]), grid(1.0, 7)
    assert aten.fake_quantize_per_channel(at)(reals).tolist() == [248.0, 248.0, -7.0, -7.0]
    assert aten.fake_quantize_per_tensor(at)(reals).tolist() == [248.0] * 4


REALS = st.floats(-(2.0**100), 2.0**100, width=32)


@given(REALS, REALS, st.sampled_from([127, 255]))
def test_a_dynamic_grid_holds_its_tensor_and_zero(a: float, b: float, top: int) -> None:
    scale, zero = aten.dynamic_scale(torch.tensor([a, b]), reduce_range=top == 127)
    assert 0 <= zero <= top
    lo, hi = -zero * scale, (top - zero) * scale
    half = scale * 0.5 * (1 + 1e-6)  # the zero is rounded to a code, and the ends move with it
    assert lo - half <= min(a, b, 0.0)
    assert max(a, b, 0.0) <= hi + half


def test_dynamic_scales_of_nothing_and_of_little() -> None:
    assert aten.dynamic_scale(torch.zeros(3)) == (0.1, 0)
    assert aten.dynamic_scale(torch.zeros(0)) == (0.1, 0)
    small = float(np.float32(6.1e-5))
    assert aten.dynamic_scale(torch.tensor([1e-6])) == (small, 0)
    assert aten.dynamic_scale(torch.tensor([-1e-6])) == (small, 255)


def test_compiled_loops_round_alike_to_the_end_of_memory() -> None:
    a, y = grid(0.5, 0), grid(1.0, 1)
    codes = torch.ones(65, dtype=torch.uint8)  # half a step and an odd zero, added after the rounding
    assert inductor.add(a, a, y)(codes, torch.zeros_like(codes)).tolist() == [1.0] * 65


def test_a_compiled_mean_divides_where_an_engine_multiplies_by_the_inverse() -> None:
    x = grid(1.0, 10)
    codes = torch.tensor([[[[10.0, 11.0], [11.0, 11.0], [10.0, 10.0]]]])  # a sum of 3 of 6
    assert inductor.adaptive_average_pool(x, output=(1, 1))(codes).item() == 10.0  # half to even, then the zero
    assert aten.mean(x, dims=(-2, -1), keep=False)(codes).item() == 10.0  # 10.5 to even
    odd = grid(1.0, 11)
    assert inductor.mean(odd, dims=(-2, -1), keep=False)(codes + 1).item() == 11.0
    assert aten.mean(odd, dims=(-2, -1), keep=False)(codes + 1).item() == 12.0
