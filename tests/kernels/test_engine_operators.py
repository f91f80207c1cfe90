"""Every kernel of PyTorch's engines beside the real engine on adversarial single operators, and beside the golden answers.

EXACTQ_SEED=N draws other cases; --slow draws 1,000 of each layer and 300 of each other operator.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tests.golden.pytorch.remake import read

from exactq.targets.pytorch.rules import ENGINES, ISAS

from .engine_cases import COMBINATIONS, LAYERS, case
from .engines import ask, emulate, isa_of

GOLDEN = Path(__file__).parents[1] / "golden" / "pytorch"
SEED = int(os.environ.get("EXACTQ_SEED", "0"))


def check(engine: str, name: str, count: int) -> None:
    isa, differ, asked = isa_of(engine), [], 0
    for index in range(count):
        example = case(name, SEED, index)
        answer = ask(engine, example)
        if answer is None:
            continue
        asked += 1
        if not np.array_equal(emulate(engine, example, isa), answer, equal_nan=answer.dtype.kind == "f"):
            differ.append(index)
    assert asked > count // 2
    assert not differ, f"{len(differ)} of {asked} cases of seed {SEED} differ: {differ[:20]}"


@pytest.mark.runtime
@pytest.mark.parametrize(("engine", "name"), COMBINATIONS)
def test_equals_the_engine_of_this_machine(engine: str, name: str) -> None:
    check(engine, name, 30 if name in LAYERS else 20)


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize(("engine", "name"), COMBINATIONS)
def test_equals_the_engine_of_this_machine_on_many_cases(engine: str, name: str) -> None:
    check(engine, name, 1000 if name in LAYERS else 300)


@pytest.mark.parametrize("isa", ISAS)
def test_equals_what_the_engines_answered_on_each_instruction_set(isa: str) -> None:
    header, stored = read(GOLDEN / f"{isa}.npz")
    assert header["isa"] == isa
    differ = [name for name, engine, made, answer in stored if not np.array_equal(emulate(engine, made, isa), answer)]
    assert not differ, f"{len(differ)} of {len(stored)} cases of {header['runtime']} differ: {differ[:20]}"


def test_the_golden_files_tell_the_instruction_sets_and_the_engines_apart() -> None:
    _, stored = read(GOLDEN / "avx2.npz")
    apart = {(e, made.op) for _, e, made, a in stored if not np.array_equal(emulate(e, made, "avx512vnni"), a)}
    assert {("fbgemm", "conv"), ("x86", "conv"), ("onednn", "conv")} <= apart
    assert {op for engine, op in apart if engine == "qnnpack"} <= {"avg_pool"}  # of ATen, where QNNPACK has none
    _, stored = read(GOLDEN / "avx512vnni.npz")
    for other in set(ENGINES) - {"fbgemm", "x86"}:
        layers = [(made, a) for _, e, made, a in stored if e == "fbgemm" and made.op in ("conv", "linear")]
        assert any(not np.array_equal(emulate(other, made, "avx512vnni"), a) for made, a in layers), other
