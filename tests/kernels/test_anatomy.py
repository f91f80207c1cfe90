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
from exactq.kernels import mlas
from exactq.kernels.anatomy import Anatomy, Function, Line, Place, Products, place_of
from exactq.numerics.formats import INT8, UINT8, Grid

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
    values = [anatomy.outside if r.place is None else operands[r.operand][r.place].item() for r in reads]
    return anatomy.plain(reads, values, shapes)


def watched(name: str, seen: Counter[str], chance: random.Random) -> Callable[..., Any]:
    """The kernel's factory, whose kernels compare some elements of what they make with their anatomy."""
    factory, anatomy_of = mlas.KERNELS[name], mlas.ANATOMIES[name]

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
                    seen["tie"] += bool(line.values.get("tie"))
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
        monkeypatch.setattr(mlas, name, watched(name, seen, random.Random(SEED)))
    for name, pairing in COMBINATIONS:
        for index in range(CASES):
            example = case(name, pairing, SEED, index)
            with torch.no_grad():
                emulate(example, isa)
    rare = ["tie", "beyond 24 bits", "largest", "mean", "copy", "sigmoid"] + ["saturated"] * mlas.SATURATES[isa]
    assert [name for name in rare if not seen[name]] == [], seen


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
        wanted, found = (inspect.signature(f).parameters.values() for f in (mlas.KERNELS[name], anatomy))
        assert [(p.name, p.kind, p.default) for p in found] == [(p.name, p.kind, p.default) for p in wanted], name
