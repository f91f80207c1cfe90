"""`exactq diff` from the shell: one run in two ways, two runs, exit codes, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Shell


def test_a_run_stands_beside_its_own_runtime(shell: Shell, run_folder: Path) -> None:
    told = shell("diff", "run", "--inputs", "8")
    assert told.code in (0, 1)
    assert told.out.startswith("qdq beside onnxruntime ")
    equal = shell("diff", "run", "--as", "emulator", "--as", "runtime", "--inputs", "8")
    assert (equal.code, equal.out.splitlines()[-1]) == (0, "equal: every element")


def test_another_instruction_set_is_named_as_the_cause(shell: Shell, run_folder: Path) -> None:
    told = shell("diff", "run", "--as", "emulator@avx2", "--as", "emulator@avx512vnni", "--inputs", "8", "--json")
    found = json.loads(told.out)
    assert told.code == 1
    assert [c["cause"] for c in found["causes"]] == ["int16 pair saturation"]
    assert found["first"] in {t["name"] for t in found["tensors"]}


def test_two_runs_are_compared_by_their_emulators(shell: Shell, run_folder: Path) -> None:
    assert shell("quantize", "simplecnn", "--recipe", "w4a8", "--out", "four").code == 0
    found = json.loads(shell("diff", "run", "four", "--inputs", "8", "--json").out)
    assert found["causes"][0]["cause"] == "different weight grid"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run --as float", "--as is given 1 times: give it twice"),
        ("run --as float --as float", "beside itself: give two ways, or two runs"),
        ("run --as qdq --as runtim", "unknown way to execute a model 'runtim': did you mean 'runtime'?"),
        ("nowhere", "there is no run folder nowhere"),
        ("run --inputs 0", "--inputs is 0; at least one input"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(shell: Shell, run_folder: Path, arguments: str, message: str) -> None:
    answer = shell("diff", *arguments.split())
    assert answer.code == 2
    assert message in answer.said


JUMPS = """
import copy
import warnings
import torch
import torch.ao.quantization as tq
from torch import nn

warnings.simplefilter("ignore")

def prepared():
    torch.manual_seed(0)
    torch.backends.quantized.engine = "fbgemm"
    net = nn.Sequential(tq.QuantStub(), nn.Conv2d(3, 4, 1), tq.DeQuantStub()).train()
    net.qconfig = tq.get_default_qat_qconfig("fbgemm")
    made = tq.prepare_qat(net)
    made(torch.randn(256, 3, 6, 6))
    return made.eval().apply(tq.disable_observer)

def converted():
    return tq.convert(copy.deepcopy(prepared()))
"""


def test_a_trained_module_stands_beside_its_own_conversion(shell: Shell) -> None:
    Path("jumps.py").write_text(JUMPS)
    told = shell("diff", "jumps.py:prepared", "jumps.py:converted", "--input-shape", "1,3,6,6", "--json")
    assert told.code == 1
    assert json.loads(told.out)["causes"][0]["cause"] == "different weight grid", told.out
    alone = shell("diff", "jumps.py:prepared", "--input-shape", "1,3,6,6")
    assert (alone.code, "name a second side" in alone.said) == (2, True)
