"""Every kernel beside the real runtime on adversarial single operators, and beside what it answered on each instruction set."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tests.golden.onnxruntime.remake import read

from exactq.kernels.mlas import ISAS

from . import ort
from .cases import COMBINATIONS, case
from .emulation import emulate

GOLDEN = Path(__file__).parents[1] / "golden" / "onnxruntime"
EACH = 220
SEED = int(os.environ.get("EXACTQ_SEED", "0"))


@pytest.mark.runtime
@pytest.mark.parametrize(("name", "pairing"), COMBINATIONS)
def test_equals_the_runtime_of_this_machine(name: str, pairing: str) -> None:
    differ = []
    for index in range(EACH):
        example = case(name, pairing, SEED, index)
        answer, ours = ort.run(example), emulate(example, ort.isa())
        if not np.array_equal(ours, answer, equal_nan=ours.dtype.kind == "f"):
            differ.append(index)
    assert not differ, f"{len(differ)} of {EACH} cases of seed {SEED} differ: {differ[:20]}"


@pytest.mark.parametrize("isa", ISAS)
def test_equals_what_the_runtime_answered_on_each_instruction_set(isa: str) -> None:
    header, stored = read(GOLDEN / f"{isa}.npz")
    assert header["isa"] == isa
    differ = [name for name, example, answer in stored if not np.array_equal(emulate(example, isa), answer)]
    assert not differ, f"{len(differ)} of {len(stored)} cases of {header['runtime']} differ: {differ[:20]}"


def test_the_golden_files_tell_the_instruction_sets_apart() -> None:
    _, stored = read(GOLDEN / "avx2.npz")
    apart = {
        name.rsplit("-", 1)[0] for name, example, answer in stored if not np.array_equal(emulate(example, "avx512vnni"), answer)
    }
    assert {"conv-dense-u8s8", "conv-odd-u8s8", "conv-grouped-u8s8", "matmul-dynamic-u8s8", "gemm-real-u8s8"} <= apart
    assert all(name.endswith("u8s8") for name in apart)
    assert "conv-depthwise-u8s8" not in apart
