"""The anatomy of every kernel comes to the kernel's own codes on adversarial operators, element by element."""

from __future__ import annotations

import inspect
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from exactq.explanation.products import product_lines
from exactq.kernels import aten, fbgemm, inductor, mlas, onednn, qnnpack
from exactq.kernels.anatomy import Anatomy, Element, Function, Line, Place, Products, place_of
from exactq.numerics.formats import INT8, UINT8, Grid
from exactq.targets.pytorch.rules import ISAS

from . import engine_cases, engines
from .cases import COMBINATIONS, case
from .emulation import emulate

SEED = int(os.environ.get("EXACTQ_SEED", "0"))
CASES = int(os.environ.get("EXACTQ_CASES", "3"))
ELEMENTS = 4
MOVES_AND_REALS = {"pad", "narrow", "transpose", "reshape", "dequantize_linear"}


def lines(anatomy: Anatomy, operands: Sequence[Tensor], at: Place) -> Sequence[Line]:
    shapes = [tuple(x.shape) for x in operands]
    if isinstance(anatomy, Products):
        return product_lines(anatomy, at, operands, None, 1.0, 5)
    assert isinstance(anatomy, Function)
    reads = anatomy.reads(at, shapes)
    values = [anatomy.outside if r.place is None else number(operands[r.operand][r.place]) for r in reads]
    return anatomy.plain(Element(at, reads, values, shapes))


def number(element: Tensor) -> int | np.float32:
    return np.float32(element.item()) if element.is_floating_point() else int(element)


def watched(library: Any, name: str, seen: Counter[str], chance: random.Random) -> Callable[..., Any]:
    """The kernel's factory, whose kernels compare some elements of what they make with their anatomy."""
    factory, anatomy_of = getattr(library, name), library.ANATOMIES[name]

    def made(*constants: Any, **options: Any) -> Callable[..., Tensor]:
        kernel, anatomy = factory(*constants, **options), anatomy_of(*constants, **options)

        def run(*operands: Tensor) -> Tensor:
            out = kernel(*operands)
            for index in {0, out.numel() - 1, int(out.argmax()), *(chance.randrange(out.numel()) for _ in range(ELEMENTS))}:
                at = place_of(index, tuple(out.shape))
                with np.errstate(all="ignore"):
                    found = lines(anatomy, operands, at)
                assert float(found[-1].value) == out[at].item() or np.isnan(float(found[-1].value)), (name, at, found)
                for line in found:
                    seen[line.name] += 1
                    seen["vector"] += bool(line.values.get("vector"))
                    seen["wraps"] += line.name == "accumulator" and line.value != line.values["exact"]
                    seen["tie"] += bool(line.values.get("tie"))
                    seen["zero of weights"] += line.name == "zero points" and line.values["zero_w"] != 0
                    seen["saturated"] += line.name == "saturation" and line.value != 0
                    if line.name == "multiply" and "rounded" in line.values:
                        seen["beyond 24 bits"] += int(line.values["rounded"]) != line.values["accumulator"]
            return out

        return run

    return made


@pytest.mark.parametrize("isa", mlas.ISAS)
def test_an_element_recomputed_in_plain_numbers_is_the_kernels(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    for name in mlas.ANATOMIES:
        monkeypatch.setattr(mlas, name, watched(mlas, name, seen, random.Random(SEED)))
    for name, pairing in COMBINATIONS:
        for index in range(CASES):
            example = case(name, pairing, SEED, index)
            with torch.no_grad():
                emulate(example, isa)
    rare = ["tie", "beyond 24 bits", "largest", "mean", "copy", "sigmoid"] + ["saturated"] * mlas.SATURATES[isa]
    assert [name for name in rare if not seen[name]] == [], seen


LIBRARIES = (aten, fbgemm, inductor, onednn, qnnpack)
LOOPS = "add mul cat hardswish leaky_relu quantize mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool2d".split()
ENGINES_LINES = "tie,loop,vector,add bias,add codes,add,mul,divide,relu,sum,multipliers,product,sigmoid,hardswish,leaky_relu"


@pytest.mark.parametrize("isa", ISAS)
def test_an_element_recomputed_in_plain_numbers_is_the_engines_kernels(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    for library in LIBRARIES:
        for name in set(library.ANATOMIES) - {"max_pool"}:
            monkeypatch.setattr(library, name, watched(library, name, seen, random.Random(SEED)))
    loops = [(engine_cases.COMPILED, name) for name in LOOPS]
    for engine, name in [*engine_cases.COMBINATIONS, *loops]:
        if name not in engine_cases.LAYERS and engine not in ("fbgemm", "qnnpack", engine_cases.COMPILED):
            continue  # ATen's own
        for index in range(4 * CASES if name in engine_cases.LAYERS else 2 * CASES):
            example = engine_cases.case(name, SEED, index)
            refused = engine == "qnnpack" and name == "add" and not qnnpack.adds(*(grid(example, n) for n in "aby"))
            if not refused:
                engines.emulate(engine, example, isa)
    assert [name for name in [*ENGINES_LINES.split(","), "saturated", "zero of weights"] if not seen[name]] == [], seen


def grid(example: engine_cases.Case, name: str) -> Grid:
    return engines.grid(example.options[f"s{name}"], example.options[f"z{name}"])


@pytest.mark.parametrize("name", ["conv2d", "conv3d", "linear"])
def test_qnnpacks_arithmetic_with_a_real_bias_is_that_of_its_anatomy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    operator = name.rstrip("123d")
    true = watched(qnnpack, operator, seen, random.Random(SEED))
    monkeypatch.setattr(qnnpack, operator, lambda *a, **options: true(*a, **options, real_bias=True))
    for index in range(4 * CASES):
        engines.emulate("qnnpack", engine_cases.case(name, SEED, index), "avx2")
    assert seen["add bias"]


def test_each_kernel_of_the_engines_has_an_anatomy_with_its_arguments() -> None:
    for library in LIBRARIES:
        made = {"conv", "linear", "add", "mul", "concat", "sigmoid", "hardswish", "leaky_relu", "quantize_per_tensor"}
        made |= {"average_pool", "adaptive_average_pool", "mean", "conv_add", "quantize"}
        assert made & set(library.__all__) == set(library.ANATOMIES) - {"max_pool"}
        for name in set(library.ANATOMIES) - {"max_pool"}:
            same_arguments(getattr(library, name), library.ANATOMIES[name])


def test_an_accumulator_that_leaves_int32_wraps_as_in_the_kernel() -> None:
    x = Grid(UINT8, torch.tensor(1.0), torch.tensor(0, dtype=torch.int32))
    w = Grid(INT8, torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32))
    y = Grid(UINT8, torch.tensor(2.0**24), torch.tensor(128, dtype=torch.int32))
    weight, bias = torch.full((1, 4), 127, dtype=torch.int8), torch.tensor([2**31 - 1], dtype=torch.int32)
    codes = torch.full((1, 4), 255.0)
    anatomy = mlas.ANATOMIES["gemm"](weight, bias, x=x, w=w, y=y, isa="avx512vnni")
    found = {line.name: line for line in lines(anatomy, (codes,), (0, 0))}
    assert found["accumulator"].values["exact"] == 2**31 - 1 + 4 * 255 * 127
    assert found["accumulator"].value == 4 * 255 * 127 - 2**31 - 1
    assert "wraps in int32" in found["accumulator"].text
    kernel = mlas.gemm(weight, bias, x=x, w=w, y=y, isa="avx512vnni")
    assert found["zero"].value == int(kernel(codes)) == 0


def test_each_kernel_that_computes_has_an_anatomy_with_its_arguments() -> None:
    assert set(mlas.KERNELS) - set(mlas.ANATOMIES) == MOVES_AND_REALS
    for name, anatomy in mlas.ANATOMIES.items():
        same_arguments(mlas.KERNELS[name], anatomy)


def same_arguments(kernel: Callable[..., Any], anatomy: Callable[..., Any]) -> None:
    wanted, found = (inspect.signature(f).parameters.values() for f in (kernel, anatomy))
    assert [(p.name, p.kind, p.default) for p in found] == [(p.name, p.kind, p.default) for p in wanted], kernel
