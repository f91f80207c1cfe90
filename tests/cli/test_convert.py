"""`exactq convert` from the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Shell

FILE = """
import torch
import torch.ao.quantization as tq
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.conv, self.dequant = tq.QuantStub(), nn.Conv2d(3, 4, 1), tq.DeQuantStub()

    def forward(self, x):
        return self.dequant(self.conv(self.quant(x)))


def fresh():
    torch.backends.quantized.engine = "fbgemm"
    model = Net().train()
    model.qconfig = tq.get_default_qat_qconfig("fbgemm")
    return tq.prepare_qat(model)


def trained():
    model = fresh()
    for _ in range(3):
        model(torch.randn(2, 3, 8, 8))
    return model.apply(tq.disable_observer)


def converted():
    return tq.convert(trained().eval())


def plain():
    return Net()
"""


@pytest.fixture
def mine(shell: Shell) -> Path:
    path = Path("mine.py")
    path.write_text(FILE)
    return path


@pytest.mark.runtime
def test_a_trained_model_becomes_a_run_folder_that_verify_takes(shell: Shell, mine: Path) -> None:
    answer = shell("convert", "mine.py:trained", "--input-shape", "1,3,8,8", "--out", "made", "--json")
    assert answer.code == 0
    facts = json.loads(answer.out)
    assert (facts["kind"], facts["mode"], facts["target"].partition("@")[0]) == ("prepared", "eager", "fbgemm")
    assert facts["outputs"] == {"elements": 64 * 4 * 64, "differ": 0}
    assert facts["verify"]["mismatches"] == 0
    (jump,) = (j for j in facts["jumps"] if j["name"] == "conv.weight")
    assert "where convert() takes" in jump["told"]
    assert {"plan.yaml", "model.safetensors", "manifest.json"} <= {p.name for p in Path("made").iterdir()}
    told = shell("verify", "made")
    assert (told.code, "verdict    ok\n" in told.out) == (0, True)


@pytest.mark.runtime
def test_a_converted_model_keeps_its_codes_and_is_told_in_words(shell: Shell, mine: Path) -> None:
    told = shell("convert", "mine.py:converted", "--input-shape", "1,3,8,8", "--out", "made")
    assert told.code == 0
    assert "outputs    0 of 16,384 differ from the converted model's own\n" in told.out
    assert "written    made\n" in told.out


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("mine.py:fresh", "was prepared but never calibrated"),
        ("mine.py:plain", "nothing in this Net is quantized or prepared"),
        ("resnet20", "name a function, file.py:factory"),
    ],
)
def test_what_cannot_be_converted_is_told(shell: Shell, mine: Path, model: str, said: str) -> None:
    answer = shell("convert", model, "--input-shape", "1,3,8,8", "--out", "made")
    assert (answer.code, said in answer.err) == (2, True)
    assert not Path("made").exists()
