"""Adversarial cases of single ONNX operators: extremes, ties, zeros at the ends, tails of SIMD loops, int32 at its ends.

Needs numpy alone, so that a runtime can be asked under user-mode emulation of another instruction set. A generator takes the
random numbers and the dtypes; `OPERATORS` is the table of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
f32 = np.float32


@dataclass(frozen=True)
class Case:
    """One operator: `inputs` in ONNX order (None where one is left out), those in `fed` at run time, the rest constant."""

    op: str
    inputs: Mapping[str, Array | None]
    fed: tuple[str, ...]
    out: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""


class Draw:
    """Random numbers, and what is adversarial about them; `fields` are the dtypes of the operands."""

    def __init__(self, seed: object, pairing: str) -> None:
        self.rng = np.random.default_rng(seed)
        names = {"u8": np.uint8, "s8": np.int8}
        self.dtypes = [np.dtype(names[pairing[i : i + 2]]) for i in range(0, len(pairing), 2)]

    def one_of(self, *values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def codes(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        lo, hi = np.iinfo(dtype).min, np.iinfo(dtype).max
        a = self.rng.integers(lo, hi + 1, shape)
        match int(self.rng.integers(6)):
            case 0:
                a = self.rng.choice([lo, hi], shape)
            case 1:
                a = np.full(shape, self.one_of(lo, hi))
            case 2:
                a = np.clip(np.rint(self.rng.normal((lo + hi) / 2, (hi - lo) / 6, shape)), lo, hi)
            case 3:
                a = np.where(self.rng.random(shape) < 0.3, hi, a)
            case 4 if self.chance(0.3):
                a = np.zeros(shape)
        return np.asarray(a, dtype)

    def zero(self, dtype: np.dtype[Any]) -> Array:
        lo, hi = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        return np.array(self.one_of(lo, hi, (lo + hi + 1) // 2, int(self.rng.integers(lo, hi + 1))), dtype)

    def scale(self) -> Array:
        if self.chance(0.03):
            return np.array(self.one_of(1e-30, 1e-9, 1e9, 1e30), f32)
        return np.array(2.0 ** self.rng.uniform(-12, 1) * self.one_of(1, 1, self.rng.uniform(0.5, 1)), f32)

    def power_of_two(self) -> Array:
        return np.array(2.0 ** int(self.rng.integers(-8, 2)), f32)

    def scales(self, n: int) -> Array:
        return np.array([self.scale() for _ in range(n)], f32)

    def bias(self, n: int) -> Array:
        limit = self.one_of(1000, 2**20, 2**31 - 1)
        return self.rng.integers(-limit, limit + 1, n).astype(np.int32)

    def fitting(self, sx: Array, sw: Array, depth: int) -> Array:
        """An output scale under which not everything is clamped; sometimes one that makes ties."""
        step = min(max(float(sx) * float(np.mean(sw)) * depth * 64 * self.rng.uniform(0.02, 1), 1e-37), 1e38)
        return np.array(2.0 ** np.rint(np.log2(step)) if self.chance(0.2) else step, f32)


def of_draw(make: Callable[[Draw], Case]) -> Callable[[object, str], Case]:
    return lambda seed, pairing: make(Draw(seed, pairing))


def weights(d: Draw, shape: tuple[int, ...], channels: int, *, zeros_differ: bool = False) -> tuple[Array, Array, Array]:
    """Codes, scales and zeros of a constant operand, per tensor or per channel."""
    dtype = d.dtypes[1]
    w = d.codes(shape, dtype)
    zero = np.array(0, dtype) if dtype == np.int8 and d.chance(0.6) else d.zero(dtype)
    if d.chance(0.5):
        return w, d.scale(), zero
    zeros = [d.zero(dtype) for _ in range(channels)] if zeros_differ and d.chance(0.4) else [zero] * channels
    return w, d.scales(channels), np.array(zeros, dtype)


def conv(*, rank: int, channels: Callable[[Draw], tuple[int, int, int]], image: int = 6) -> Callable[[object, str], Case]:
    def make(d: Draw) -> Case:
        into, out, groups = channels(d)
        kernel = d.one_of((1,) * rank, (3,) * rank, (2,) * rank, (1, 3, 2)[:rank])
        dilation = d.one_of((1,) * rank, (1,) * rank, (2,) * rank)
        stride = tuple(int(n) for n in d.rng.integers(1, 3, rank))
        pads = tuple(int(n) for n in d.rng.integers(0, 2, 2 * rank)) if d.chance(0.7) else (0,) * 2 * rank
        size = [int(d.rng.integers(e := s * (k - 1) + 1, e + image)) for s, k in zip(dilation, kernel, strict=True)]
        x = d.codes((d.one_of(1, 2), into, *size), d.dtypes[0])
        w, sw, zw = weights(d, (out, into // groups, *kernel), out)
        sx, depth = d.scale(), into // groups * int(np.prod(kernel))
        last = rank == 2 and d.chance(0.3)
        inputs = {
            "x": np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x,
            "sx": sx,
            "zx": d.zero(x.dtype),
            "w": w,
            "sw": sw,
            "zw": zw,
            "sy": d.fitting(sx, sw, depth),
            "zy": d.zero(x.dtype),
            "bias": d.bias(out) if d.chance(0.7) else None,
        }
        attributes = {
            "kernel_shape": kernel,
            "strides": stride,
            "pads": pads,
            "dilations": dilation,
            "group": groups,
            **({"channels_last": 1} if last else {}),
        }
        fed = ("x", "w") if d.chance(0.1) else ("x",)
        return Case("QLinearConv", inputs, fed, str(x.dtype), attributes, "com.microsoft" if last else "")

    return of_draw(make)


def dense(d: Draw) -> tuple[int, int, int]:
    return d.one_of(4, 8, 16, 32, 64), d.one_of(8, 16, 24, 32), 1


def odd(d: Draw) -> tuple[int, int, int]:
    return d.one_of(1, 3, 5, 7), d.one_of(1, 5, 16, 33), 1


def deep(d: Draw) -> tuple[int, int, int]:
    return d.one_of(256, 384), d.one_of(3, 16), 1


def depthwise(d: Draw) -> tuple[int, int, int]:
    n = d.one_of(1, 3, 8, 16, 24, 32, 48)
    return n, n, n


def grouped(d: Draw) -> tuple[int, int, int]:
    groups = d.one_of(2, 3, 4)
    return groups * d.one_of(1, 2, 3, 4, 8), groups * d.one_of(1, 2, 3, 4, 16), groups


def matrix(d: Draw) -> tuple[int, int, int]:
    rows = d.one_of(1, 2, 3, 4, 5, 7, 13, 33)
    return rows, d.one_of(1, 2, 3, 4, 7, 15, 16, 33, 64, 130, 385, 513), d.one_of(1, 3, 8, 16, 17, 24, 33)


@of_draw
def matmul_constant(d: Draw) -> Case:
    m, k, n = matrix(d)
    a = d.codes((m, k), d.dtypes[0])
    b, sb, zb = weights(d, (k, n), n)
    sa = d.scale()
    outputs = {"sy": d.fitting(sa, sb, k), "zy": d.zero(a.dtype)}
    inputs = {"x": a, "sx": sa, "zx": d.zero(a.dtype), "w": b, "sw": sb, "zw": zb, **outputs}
    return Case("QLinearMatMul", inputs, ("x", "w") if d.chance(0.1) else ("x",), str(a.dtype))


@of_draw
def matmul_dynamic(d: Draw) -> Case:
    m, k, n = matrix(d)
    a, b = d.codes((3, m, k), d.dtypes[0]), d.codes((3, k, n), d.dtypes[1])
    sa, sb = d.scale(), d.scale()
    inputs = {"x": a, "sx": sa, "zx": d.zero(a.dtype), "w": b, "sw": sb, "zw": d.zero(b.dtype)}
    inputs |= {"sy": d.fitting(sa, sb, k), "zy": d.zero(a.dtype)}
    return Case("QLinearMatMul", inputs, ("x", "w"), str(a.dtype))


@of_draw
def matmul_integer(d: Draw) -> Case:
    m, k, n = matrix(d)
    a = d.codes((m, k), d.dtypes[0])
    b, _, zb = weights(d, (k, n), n, zeros_differ=True)
    return Case("MatMulInteger", {"x": a, "w": b, "zx": d.zero(a.dtype), "zw": zb}, ("x",), "int32")


def gemm(*, real: bool) -> Callable[[object, str], Case]:
    def make(d: Draw) -> Case:
        m, k, n = matrix(d)
        a = d.codes((m, k), d.dtypes[0])
        b, sb, zb = weights(d, (n, k), n)
        sa, alpha = d.scale(), d.one_of(1.0, 1.0, 0.5, 1 / 3)
        inputs = {"x": a, "sx": sa, "zx": d.zero(a.dtype), "w": b, "sw": sb, "zw": zb}
        inputs["bias"] = d.bias(n) if d.chance(0.8) else None
        if not real:
            inputs |= {"sy": d.fitting(sa, sb, k), "zy": d.zero(a.dtype)}
        attributes = {"transB": 1, "alpha": alpha}
        return Case("QGemm", inputs, ("x",), "float32" if real else str(a.dtype), attributes, "com.microsoft")

    return of_draw(make)


def near_tie(d: Draw, lo: int, hi: int, za: Array, zb: Array, zy: Array, sy: Array) -> tuple[int, int, Array, Array]:
    """Codes and scales of two operands whose sum lies between two codes of the output but for the rounding of a scale."""
    for _ in range(100):  # zeros at opposite ends allow none
        p, q = (int(n) for n in d.rng.integers(lo, hi + 1, 2))
        half, ra = int(d.rng.integers(lo, hi)) + 0.5, f32(d.rng.uniform(0.1, 2))
        away = half - int(zy) - float(ra) * (p - int(za))
        if q != int(zb) and 0.05 < (rb := away / (q - int(zb))) < 5:
            return p, q, np.array(ra * sy, f32), np.array(f32(rb) * sy, f32)
    return 0, 0, d.scale(), d.scale()


def elementwise(op: str, *, near_ties: bool = False) -> Callable[[object, str], Case]:
    def make(d: Draw) -> Case:
        dtype = d.dtypes[0]
        lo, hi = np.iinfo(dtype).min, np.iinfo(dtype).max
        n = d.one_of(1, 5, 16, 31, 32, 33, 100, 1000)
        a, b = d.one_of(
            ((n,), (n,)),
            ((2, 3, 4, n), (2, 3, 4, n)),
            ((n,), (1,)),
            ((1,), (n,)),
            ((2, 3, n), (3, 1)),
            ((3, 1), (2, 3, n)),
            ((2, 1, 5), (3, 5)),
            ((2, 5, 1), (5, 1)),
            ((), (n,)),
        )
        if near_ties:
            a, b = d.one_of(((64,), (64,)), ((64,), (1,)), ((1,), (64,)))
        a, b = d.codes(a, dtype), d.codes(b, dtype)
        za, zb, zy = d.zero(dtype), d.zero(dtype), d.zero(dtype)
        sa, sb, sy = d.scale(), d.scale(), d.scale()
        match 1 if near_ties else int(d.rng.integers(3)):
            case 0:  # exact ties
                sa, sb, sy = (d.power_of_two() for _ in range(3))
            case 1 if op == "QLinearAdd":  # a pair of codes whose sum one rounding more or less turns
                sy = d.power_of_two()
                p, q, sa, sb = near_tie(d, lo, hi, za, zb, zy, sy)
                a.reshape(-1)[::2], b.reshape(-1)[::2] = p, q
        inputs = {"a": a, "sa": sa, "za": za, "b": b, "sb": sb, "zb": zb, "sy": sy, "zy": zy}
        return Case(op, inputs, ("a", "b"), str(dtype), domain="com.microsoft")

    return of_draw(make)


def unary(d: Draw, x: Array, op: str, **attributes: Any) -> Case:
    sx, sy = (d.power_of_two(), d.power_of_two()) if d.chance(0.3) else (d.scale(), d.scale())
    if op == "QLinearSigmoid" and d.chance(0.7):
        sy = np.array(d.one_of(1 / 255, 1 / 256, d.rng.uniform(0.003, 0.006)), f32)
    inputs = {"x": x, "sx": sx, "zx": d.zero(x.dtype), "sy": sy, "zy": d.zero(x.dtype)}
    return Case(op, inputs, ("x",), str(x.dtype), attributes, "com.microsoft")


def image(d: Draw, *, least: int = 1) -> Array:
    shape = (2, d.one_of(1, 3, 8, 17), int(d.rng.integers(least, 12)), int(d.rng.integers(least, 12)))
    return d.codes(shape, d.dtypes[0])


def laid_out(d: Draw, case: Case) -> Case:
    """The case as it is, or in the layout that an optimised session runs."""
    if d.chance(0.5):
        return case
    x = np.ascontiguousarray(case.inputs["x"].transpose(0, 2, 3, 1))  # type: ignore[union-attr]
    return replace(case, inputs={**case.inputs, "x": x}, attributes={**case.attributes, "channels_last": 1})


def in_range(sx: Array | None, sy: Array | None) -> dict[str, Array]:
    """Scales whose factor lies in 2^-32..256, beyond which the global kernel refuses."""
    return {"sx": np.array(np.clip(sx, 1e-6, 1), f32), "sy": np.array(np.clip(sy, 0.005, 30), f32)}  # type: ignore[arg-type]


@of_draw
def global_average_pool(d: Draw) -> Case:
    case = laid_out(d, unary(d, image(d), "QLinearGlobalAveragePool"))
    return replace(case, inputs={**case.inputs, **in_range(case.inputs["sx"], case.inputs["sy"])})


def window(d: Draw, *, dilated: bool = False) -> dict[str, Any]:
    kernel = (int(d.rng.integers(1, 4)), int(d.rng.integers(1, 4)))
    pads = [int(d.rng.integers(0, min(k, 2))) for k in (*kernel, *kernel)]
    found: dict[str, Any] = {"kernel_shape": kernel, "pads": pads, "strides": [d.one_of(1, 2, 3), d.one_of(1, 2)]}
    if dilated:
        found["dilations"] = [d.one_of(1, 1, 2), d.one_of(1, 1, 2)]
    return found | {"ceil_mode": int(d.chance(0.3))}


@of_draw
def average_pool(d: Draw) -> Case:
    attributes = window(d) | {"count_include_pad": int(d.chance(0.5))}
    x = image(d, least=3)
    if d.chance(0.1):
        attributes |= {"kernel_shape": x.shape[2:], "pads": [0] * 4}
    case = laid_out(d, unary(d, x, "QLinearAveragePool", **attributes))
    if attributes["kernel_shape"] != x.shape[2:] or any(attributes["pads"]):
        return case
    return replace(case, inputs={**case.inputs, **in_range(case.inputs["sx"], case.inputs["sy"])})


@of_draw
def max_pool(d: Draw) -> Case:
    x = image(d, least=5)
    return Case("MaxPool", {"x": x}, ("x",), str(x.dtype), window(d, dilated=True))


@of_draw
def concat(d: Draw) -> Case:
    x, other = image(d), image(d)
    other = np.resize(other, (2, other.shape[1], *x.shape[2:]))
    sy, zy = d.scale(), d.zero(x.dtype)
    grid = (sy, zy) if d.chance(0.4) else (d.scale(), d.zero(x.dtype))
    inputs = {"sy": sy, "zy": zy, "x0": x, "s0": grid[0], "z0": grid[1], "x1": other, "s1": d.scale(), "z1": d.zero(x.dtype)}
    return Case("QLinearConcat", inputs, ("x0", "x1"), str(x.dtype), {"axis": 1}, "com.microsoft")


@of_draw
def leaky_relu(d: Draw) -> Case:
    return unary(d, image(d), "QLinearLeakyRelu", alpha=float(f32(d.rng.uniform(0, 0.5))))


@of_draw
def sigmoid(d: Draw) -> Case:
    dtype = d.dtypes[0]
    return unary(d, np.arange(256).astype(np.uint8).view(dtype), "QLinearSigmoid")


@of_draw
def real_sigmoid(d: Draw) -> Case:
    x = d.rng.normal(0, d.one_of(1, 6, 20), d.one_of(100, 1000)).astype(f32)
    return Case("Sigmoid", {"x": x}, ("x",), "float32")


@of_draw
def quantize(d: Draw) -> Case:
    dtype, s = d.dtypes[0], d.power_of_two() if d.chance(0.5) else d.scale()
    with np.errstate(over="ignore"):
        x = (d.rng.integers(-600, 600, d.one_of(8, 15, 64, 257)) * f32(0.5) * s).astype(f32)
    x[:6] = [np.nan, np.inf, -np.inf, 3e38, -3e38, -0.0]
    return Case("QuantizeLinear", {"x": x, "s": s, "z": d.zero(dtype)}, ("x",), str(dtype))


@of_draw
def dequantize(d: Draw) -> Case:
    x = image(d)
    return Case("DequantizeLinear", {"x": x, "s": d.scale(), "z": d.zero(x.dtype)}, ("x",), "float32")


@of_draw
def pad(d: Draw) -> Case:
    x, zero = image(d), d.zero(d.dtypes[0])
    return Case("Pad", {"x": x, "pads": d.rng.integers(0, 3, 8), "zero": zero}, ("x",), str(x.dtype))


@of_draw
def narrow(d: Draw) -> Case:
    x = image(d, least=4)
    inputs = {"x": x, "starts": np.array([1, 0]), "ends": np.array([4, 2**40]), "axes": np.array([2, -1])}
    return Case("Slice", inputs | {"steps": np.array([1, d.one_of(1, 2)])}, ("x",), str(x.dtype))


BOTH = ("u8", "s8")
PAIRINGS = ("u8s8", "u8u8", "s8s8")
OPERATORS: Mapping[str, tuple[Callable[[object, str], Case], tuple[str, ...]]] = {
    "conv-dense": (conv(rank=2, channels=dense), PAIRINGS),
    "conv-odd": (conv(rank=2, channels=odd), PAIRINGS),
    "conv-deep": (conv(rank=2, channels=deep, image=2), PAIRINGS),
    "conv-depthwise": (conv(rank=2, channels=depthwise), PAIRINGS),
    "conv-grouped": (conv(rank=2, channels=grouped), PAIRINGS),
    "conv-1d": (conv(rank=1, channels=grouped), PAIRINGS),
    "conv-1d-odd": (conv(rank=1, channels=odd), PAIRINGS),
    "conv-3d": (conv(rank=3, channels=odd, image=3), PAIRINGS),
    "conv-3d-grouped": (conv(rank=3, channels=grouped, image=3), PAIRINGS),
    "matmul-constant": (matmul_constant, PAIRINGS),
    "matmul-dynamic": (matmul_dynamic, PAIRINGS),
    "matmul-integer": (matmul_integer, PAIRINGS),
    "gemm": (gemm(real=False), PAIRINGS),
    "gemm-real": (gemm(real=True), PAIRINGS),
    "add": (elementwise("QLinearAdd"), BOTH),
    "add-near-ties": (elementwise("QLinearAdd", near_ties=True), BOTH),
    "mul": (elementwise("QLinearMul"), BOTH),
    "global-average-pool": (global_average_pool, BOTH),
    "average-pool": (average_pool, BOTH),
    "max-pool": (max_pool, BOTH),
    "concat": (concat, BOTH),
    "leaky-relu": (leaky_relu, BOTH),
    "sigmoid": (sigmoid, BOTH),
    "sigmoid-real": (real_sigmoid, ("u8",)),
    "quantize": (quantize, BOTH),
    "dequantize": (dequantize, BOTH),
    "pad": (pad, BOTH),
    "slice": (narrow, BOTH),
}
"""Name -> generator of a case from a seed and a pairing, and the pairings (activation, weight) that the runtime has."""

COMBINATIONS = [(name, pairing) for name, (_, pairings) in OPERATORS.items() for pairing in pairings]


def case(name: str, pairing: str, seed: int, index: int) -> Case:
    """The index-th case of one row of the table under a seed."""
    row = sum(256**i * b for i, b in enumerate(f"{name}/{pairing}".encode()[:12]))
    return OPERATORS[name][0]([seed, row % 2**32, index], pairing)
