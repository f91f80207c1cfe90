"""Adversarial cases of single operators of PyTorch's int8 engines: extremes, ties, zeros at the ends, tails of vector loops.

A generator takes the random numbers; `OPERATORS` is the table of all. Codes, scales and reals come as arrays by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .cases import Array, Draw, f32


@dataclass(frozen=True)
class Case:
    """One operator: its arrays by name, and what else it is told; `last` lays images out channels-last."""

    op: str
    arrays: Mapping[str, Array]
    options: Mapping[str, Any] = field(default_factory=dict)


def zero(d: Draw) -> int:
    return int(d.one_of(0, 255, 128, d.rng.integers(256)))


def scale(d: Draw) -> float:
    return float(f32(d.scale()))


def codes(d: Draw, *shape: int) -> Array:
    """uint8 codes; those above 128, which alone saturate pairs, are left out at times."""
    made = d.codes(shape, np.dtype(np.uint8))
    return np.minimum(made, 127).astype(np.uint8) if d.chance(0.3) else made


def weighted(d: Draw, x: Array, w: Array, depth: int, options: dict[str, Any]) -> Case:
    """A convolution or linear layer on these codes: weights with one scale or one a channel, an output that is not all clamped.

    At times scales that make ties, an accumulator beyond int32 in steps of the output, or weights that are all zero.
    """
    out, kind = w.shape[0], d.one_of("plain", "plain", "ties", "close", "close", "beyond", "zeros")
    if kind == "close":
        return close(d, x, w, depth, options)
    channels = d.chance(0.6)
    sx, sw = d.power_of_two() if kind == "ties" else d.scale(), d.scales(out if channels else 1)
    if kind == "ties":
        sw = np.array([d.power_of_two() for _ in sw], f32)
    if kind == "zeros":
        w, sw = np.zeros_like(w), np.where(d.rng.random(len(sw)) < 0.7, f32(1.1920929e-07), sw).astype(f32)
    sx, sw = f32(np.clip(sx, 1e-15, 1e9)), np.clip(sw, 1e-15, 1e9).astype(f32)
    step = float(sx) * float(np.median(sw)) * 64 * depth**0.5 * float(d.rng.uniform(0.05, 2))
    sy = {"beyond": step * 2.0 ** -float(d.rng.uniform(15, 40)), "ties": 2.0 ** np.rint(np.log2(step))}.get(kind, step)
    sy = f32(np.clip(sy, 1e-30, 1e30))
    arrays = {"x": x, "w": w, "sw": sw}
    if d.chance(0.7):
        arrays["bias"] = (d.rng.normal(size=out) * float(sy) * d.one_of(0.5, 40, 3000)).astype(f32)
    told = {"sx": float(sx), "zx": zero(d), "sy": float(sy), "zy": zero(d), "channels": channels, "relu": d.chance(0.4)}
    return Case("conv" if "stride" in options else "linear", arrays, told | options)


def close(d: Draw, x: Array, w: Array, depth: int, options: dict[str, Any]) -> Case:
    """As `weighted`, with half steps everywhere but for the rounding of scales: which of two roundings comes first shows."""
    out, channels, ulp = w.shape[0], d.chance(0.6), 2.0**-23
    sx, sw = float(f32(d.rng.uniform(0.005, 0.02))), float(d.rng.uniform(0.005, 0.02))
    scales = (sw * (1 + d.rng.integers(-3, 4, out if channels else 1) * ulp)).astype(f32)
    sy = float(f32(2 * sx * sw * (1 + int(d.rng.integers(-2, 3)) * ulp)))
    few = (d.rng.integers(-3, 4, w.shape) * (d.rng.random(w.shape) < 8 / depth)).astype(np.int8)
    arrays = {"x": (x % 32).astype(np.uint8), "w": few, "sw": scales}
    if d.chance(0.6):
        arrays["bias"] = (d.rng.integers(-40, 40, out) * 0.5 * sy).astype(f32)
    told = {"sx": sx, "zx": int(d.rng.integers(0, 20)), "sy": sy, "zy": zero(d), "channels": channels}
    told["relu"] = d.chance(0.4)
    return Case("conv" if "stride" in options else "linear", arrays, told | options)


def shape_of(d: Draw) -> tuple[int, int, int]:
    """Input channels, output channels and groups."""
    kind = d.one_of("dense", "odd", "deep", "depthwise", "depthwise", "grouped", "grouped", "multiplied")
    match kind:
        case "dense":
            return d.one_of(4, 8, 16, 32, 64), d.one_of(8, 16, 24, 32), 1
        case "odd":
            return d.one_of(1, 3, 5, 7), d.one_of(1, 5, 16, 33), 1
        case "deep":
            return d.one_of(130, 256), d.one_of(3, 16), 1
        case "depthwise":
            n = d.one_of(1, 3, 8, 16, 24, 32, 48, 128)
            return n, n, n
        case "multiplied":
            n = d.one_of(2, 3, 8, 16)
            return n, n * d.one_of(2, 3), n
    groups = d.one_of(2, 3, 4, 8)
    return groups * d.one_of(1, 2, 3, 4, 8, 16), groups * d.one_of(1, 2, 3, 4, 8, 16), groups


def conv(rank: int) -> Callable[[Draw], Case]:
    def make(d: Draw) -> Case:
        into, out, groups = shape_of(d)
        if rank == 3:
            into, out = (groups * min(n // groups, 8) for n in (into, out))
        most = 2 if rank == 3 else 3
        kernel = tuple(int(d.rng.integers(1, most + 1)) for _ in range(rank))
        kernel = d.one_of(kernel, (1,) * rank, (3,) * rank, (most,) * rank)
        dilation = d.one_of((1,) * rank, (1,) * rank, (2,) * rank)
        stride = tuple(int(n) for n in d.rng.integers(1, 3, rank))
        padding = tuple(int(d.rng.integers(0, k)) for k in kernel) if d.chance(0.7) else (0,) * rank
        size = [int(d.rng.integers(e := s * (k - 1) + 1, e + 6)) for s, k in zip(dilation, kernel, strict=True)]
        x, w = codes(d, d.one_of(1, 2), into, *size), d.codes((out, into // groups, *kernel), np.dtype(np.int8))
        if groups == into and d.chance(0.5):  # what kernels of their own are for: 3 or 5 pixels, padded to keep the image
            side = d.one_of(3, 3, 5)
            kernel, dilation, padding = (side,) * rank, (1,) * rank, (side // 2,) * rank
            stride, size = (d.one_of(1, 2),) * rank, [max(n, side) for n in size]
            x, w = codes(d, d.one_of(1, 2), into, *size), d.codes((out, 1, *kernel), np.dtype(np.int8))
        depth = into // groups * int(np.prod(kernel))
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return weighted(d, x, w, depth, options)

    return make


def linear(d: Draw) -> Case:
    rows, depth, out = (
        d.one_of(1, 2, 3, 5, 7, 19),
        d.one_of(1, 2, 3, 7, 8, 15, 16, 31, 33, 64, 100, 385, 513),
        d.one_of(1, 3, 4, 8, 10, 17, 33),
    )
    shape = (rows, depth) if d.chance(0.8) else (2, rows, depth)
    return weighted(d, codes(d, *shape), d.codes((out, depth), np.dtype(np.int8)), depth, {})


def shape(d: Draw) -> tuple[int, ...]:
    """Any shape, with a length that leaves something over for vectors of every width, or nothing."""
    n = d.one_of(1, 7, 8, 16, 31, 32, 33, 64, 100, 128, 129, 250, 1024)
    return d.one_of(
        (n,), (2, n), (1, n, 3), (2, n, 3, 1), (1, min(n, 64), 5, 4), (3, min(n, 64), 1, 1), (1, 8, 2, 3, min(n, 9))
    )


def image(d: Draw, rank: int, least: int) -> Array:
    channels = d.one_of(1, 3, 4, 8, 13, 16, 21, 32, 40, 64)
    return codes(d, d.one_of(1, 2), channels, *(int(d.rng.integers(least, least + 6)) for _ in range(rank)))


def near(d: Draw, s: float) -> float:
    """A scale near `s`, at times one that makes ties, or one in whose steps everything is beyond int32."""
    return float(f32(s * (1e-12 if d.chance(0.05) else d.one_of(0.5, 1, 2, 1.37, d.rng.uniform(0.1, 8)))))


def pair(op: str) -> Callable[[Draw], Case]:
    def make(d: Draw) -> Case:
        size, ties = shape(d), d.chance(0.4)
        sa, sb = (float(d.power_of_two() if ties else f32(np.exp(d.rng.uniform(-6, 1)))) for _ in range(2))
        s = near(d, max(sa, sb)) if op == "add" else near(d, sa * sb * 60)
        if ties:
            s = float(f32(2.0 ** np.rint(np.log2(s))))
        told = {"sa": sa, "za": zero(d), "sb": sb, "zb": zero(d), "sy": s, "zy": zero(d), "relu": d.chance(0.5)}
        return Case(op, {"a": codes(d, *size), "b": codes(d, *size)}, told)

    return make


def unary(op: str) -> Callable[[Draw], Case]:
    def make(d: Draw) -> Case:
        s = float(d.power_of_two()) if d.chance(0.4) else scale(d)
        s = float(f32(np.clip(s, 1e-4, 3)))
        sy = d.one_of(1 / 256, 1 / 255, near(d, 1 / 200)) if op == "sigmoid" else near(d, s)
        told = {"sx": s, "zx": zero(d), "sy": float(f32(sy)), "zy": zero(d)}
        slope = {"slope": float(f32(d.rng.uniform(0, 0.5)))} if op == "leaky_relu" else {}
        return Case(op, {"x": codes(d, *shape(d))}, told | slope)

    return make


def concat(d: Draw) -> Case:
    size = shape(d)
    axis = int(d.rng.integers(len(size)))
    other = list(size)
    other[axis] += d.one_of(0, 1, 5)
    arrays = {"a": codes(d, *size), "b": codes(d, *other)}
    sa, sb = (float(f32(np.clip(scale(d), 1e-6, 1e6))) for _ in range(2))
    sy, zy = d.one_of((sa, 7), (near(d, sa), zero(d)), (near(d, sb), zero(d)))
    if d.chance(0.4):
        sa, sb, sy = (float(d.power_of_two()) for _ in range(3))
    return Case("cat", arrays, {"sa": sa, "za": 7, "sb": sb, "zb": zero(d), "sy": sy, "zy": zy, "axis": axis})


def pool(op: str, rank: int) -> Callable[[Draw], Case]:
    def make(d: Draw) -> Case:
        kernel = tuple(int(n) for n in d.rng.integers(1, 4, rank))
        if kernel == (1,) * rank:
            kernel = (2,) * rank
        told = {
            "kernel": kernel,
            "stride": tuple(int(n) for n in d.rng.integers(1, 3, rank)),
            "padding": tuple(int(d.rng.integers(0, k // 2 + 1)) for k in kernel),
        }
        if op == "avg_pool":
            told["count_include_pad"] = d.chance(0.5)
        return Case(op, {"x": image(d, rank, 3)}, told | {"sx": scale(d), "zx": zero(d)})

    return make


def adaptive(rank: int) -> Callable[[Draw], Case]:
    def make(d: Draw) -> Case:
        x = image(d, rank, 1)
        output = (1,) * rank if d.chance(0.6) else tuple(int(d.rng.integers(1, n + 1)) for n in x.shape[2:])
        return Case("adaptive_avg_pool", {"x": x}, {"output": output, "sx": scale(d), "zx": zero(d)})

    return make


def mean(d: Draw) -> Case:
    x = image(d, 2, 1) if d.chance(0.7) else codes(d, 2, d.one_of(1, 5, 16, 33), d.one_of(1, 7, 64, 100))
    dims = tuple(range(-int(d.rng.integers(1, x.ndim)), 0))
    return Case("mean", {"x": x}, {"dims": dims, "keep": d.chance(0.5), "sx": scale(d), "zx": zero(d)})


def quantize(d: Draw) -> Case:
    s = float(d.power_of_two()) if d.chance(0.5) else scale(d)
    size = shape(d)
    with np.errstate(over="ignore"):
        x = (d.rng.integers(-600, 600, size) * f32(0.5) * f32(s)).astype(f32)
    if d.chance(0.5):
        x = (d.rng.normal(size=size) * s * 100).astype(f32)
    if d.chance(0.3):
        x.reshape(-1)[: x.size // 2] = d.rng.choice(np.array([np.inf, -np.inf, 3e38, -3e38, -0.0], f32), x.size // 2)
    return Case("quantize", {"x": x}, {"sy": s, "zy": zero(d)})


def dequantize(d: Draw) -> Case:
    return Case("dequantize", {"x": codes(d, *shape(d))}, {"sx": scale(d), "zx": zero(d)})


def conv_add(d: Draw) -> Case:
    """A convolution of images and the codes that are added to it, of the sum's scale, near it, or half of it."""
    made = conv(2)(d)
    o, x, w = made.options, made.arrays["x"], made.arrays["w"]
    at = zip(x.shape[2:], o["padding"], o["dilation"], w.shape[2:], o["stride"], strict=True)
    image = [(n + 2 * p - e * (k - 1) - 1) // s + 1 for n, p, e, k, s in at]
    ulp, sy = 2.0**-23, o["sy"]
    s = d.one_of(
        sy, sy * d.rng.uniform(0.2, 3), sy / 2 * (1 + int(d.rng.integers(-3, 4)) * ulp), sy * 2.0 ** d.rng.uniform(-11, 6)
    )
    added = d.codes((x.shape[0], w.shape[0], *image), np.dtype(np.uint8))
    return Case("conv_add", {**made.arrays, "a": added}, {**o, "sa": float(f32(s)), "za": d.one_of(zero(d), o["zy"])})


def linear_dynamic(d: Draw) -> Case:
    """A linear layer that lays a grid over its reals: of one sign, of one value, tiny, half steps, or all zero."""
    made = linear(d)
    size, s = made.arrays["x"].shape, float(np.exp(d.rng.uniform(-6, 5)))
    match d.one_of("normal", "codes", "positive", "negative", "tiny", "ties", "constant", "zero"):
        case "normal":
            x = d.rng.normal(size=size) * s
        case "codes":
            x = (made.arrays["x"].astype(np.float64) - 100) * s
        case "positive":
            x = np.abs(d.rng.normal(size=size)) * s + s
        case "negative":
            x = -np.abs(d.rng.normal(size=size)) * s
        case "tiny":
            x = d.rng.normal(size=size) * 1e-6 * np.exp(d.rng.uniform(-20, 6))
        case "ties":
            x = d.rng.integers(-255, 256, size) * 0.5 * 2.0 ** int(d.rng.integers(-6, 3))
            x.reshape(-1)[:2] = (127.5 * 2.0 ** int(d.rng.integers(-6, 3)) * np.array([1, -1]))[: x.size]
        case "constant":
            x = np.full(size, s * d.one_of(1, -1))
        case _:
            x = np.zeros(size)
    told = {k: made.options[k] for k in ("channels", "relu")} | {"reduce_range": d.chance(0.5)}
    arrays = {"x": x.astype(f32), **{k: a for k, a in made.arrays.items() if k != "x"}}
    return Case("linear_dynamic", arrays, told)


def reals(op: str, *, channels: bool, signed: bool | None = None) -> Callable[[Draw], Case]:
    """Reals that are rounded: ties, infinities, steps around 2³¹ and 2⁶³, with one grid or one a channel."""

    def make(d: Draw) -> Case:
        made = quantize(d)
        x, s = made.arrays["x"], made.options["sy"]
        if d.chance(0.3):
            few = d.rng.choice(np.array([2.0**31, 2.0**31 - 128, 2.0**40, 2.0**62.9, 2.0**64]), x.size) * s
            with np.errstate(over="ignore"):
                x.reshape(-1)[: x.size // 3] = (few * d.rng.choice([-1, 1], x.size)).astype(f32)[: x.size // 3]
        negative = d.chance(0.5) if signed is None else signed
        lo, hi = (-128, 127) if negative else (0, 255)
        axis = int(d.rng.integers(x.ndim if x.ndim < 4 else 2))  # of images PyTorch takes these two
        count = x.shape[axis] if channels else 1
        scales = np.ldexp(f32(s), d.rng.integers(-2, 3, count)).astype(f32) if channels else np.array([s], f32)
        zeros = d.rng.choice([lo, hi, (lo + hi + 1) // 2, *d.rng.integers(lo, hi + 1, 3)], count)
        return Case(op, {"x": x, "s": scales, "z": zeros.astype(np.int64)}, {"signed": negative, "axis": axis})

    return make


def affine(make: Callable[[Draw], Case]) -> Callable[[Draw], Case]:
    """A layer whose weights have zeros of their own: the ends, near them, or any, one a channel where scales are so."""

    def made(d: Draw) -> Case:
        given = make(d)
        zeros = d.rng.choice([-128, 127, 1, -1, *d.rng.integers(-128, 128, 3)], given.arrays["sw"].size)
        return Case(given.op, {**given.arrays, "zw": zeros.astype(np.int64)}, given.options)

    return made


OPERATORS: dict[str, Callable[[Draw], Case]] = {
    "conv1d": conv(1),
    "conv2d": conv(2),
    "conv3d": conv(3),
    "linear": linear,
    "quantize": quantize,
    "dequantize": dequantize,
    "add": pair("add"),
    "mul": pair("mul"),
    "cat": concat,
    "max_pool1d": pool("max_pool", 1),
    "max_pool2d": pool("max_pool", 2),
    "max_pool3d": pool("max_pool", 3),
    "avg_pool1d": pool("avg_pool", 1),
    "avg_pool2d": pool("avg_pool", 2),
    "avg_pool3d": pool("avg_pool", 3),
    "adaptive_avg_pool1d": adaptive(1),
    "adaptive_avg_pool2d": adaptive(2),
    "sigmoid": unary("sigmoid"),
    "hardswish": unary("hardswish"),
    "leaky_relu": unary("leaky_relu"),
    "conv2d_add": conv_add,
    "linear_dynamic": linear_dynamic,
    "quantize_int8": reals("quantize_per_tensor", channels=False, signed=True),
    "quantize_per_channel": reals("quantize_per_channel", channels=True),
    "fake_quantize": reals("fake_quantize_per_tensor", channels=False),
    "fake_quantize_per_channel": reals("fake_quantize_per_channel", channels=True),
    "quantize_decomposed": reals("quantize_decomposed", channels=False),
    "quantize_decomposed_per_channel": reals("quantize_decomposed", channels=True),
    "mean": mean,
    **{f"conv{rank}d_affine": affine(conv(rank)) for rank in (1, 2, 3)},
    "linear_affine": affine(linear),
}
"""Name -> generator. New ones go to the end: the place of a name is in the seed of its cases."""


ENGINES = ("fbgemm", "x86", "onednn", "qnnpack")
MISSING = {("qnnpack", "max_pool3d"), ("qnnpack", "sigmoid")}
"""What an engine has no kernel for, but on one output grid."""
COMPILED = "inductor"
ONLY: dict[str, tuple[str, ...]] = {
    "conv2d_add": ("onednn",),
    **{name: ("fbgemm", "x86", "qnnpack") for name in OPERATORS if name.endswith("_affine")},
    **dict.fromkeys([name for name in OPERATORS if name.startswith(("quantize_", "fake_"))], ("fbgemm",)),
}
"""What one engine has alone, and what is asked once because no engine is asked for it."""
COMBINATIONS = [
    (engine, name)
    for engine in ENGINES
    for name in OPERATORS
    if (engine, name) not in MISSING and engine in ONLY.get(name, ENGINES)
]
COMBINATIONS += [(COMPILED, name) for name in ("conv1d", "conv2d", "conv2d_add", "linear")]
"""Engine and operator; of what torch.compile makes the operators that it calls (the loops it writes: `compiled.py`)."""
LAYERS = {"conv1d", "conv2d", "conv3d", "linear", "conv2d_add", "linear_dynamic"}
LAYERS |= {name for name in OPERATORS if name.endswith("_affine")}
"""The operators with weights, whose arithmetic differs from engine to engine; most of the others are ATen's own in all."""


def case(name: str, seed: int, index: int) -> Case:
    return OPERATORS[name](Draw([seed, list(OPERATORS).index(name), index], "u8"))
