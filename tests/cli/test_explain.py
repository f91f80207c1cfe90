"""`exactq explain` from the shell: text, JSON, the run's own data, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from exactq.quantized import load

from .conftest import Shell, write_npz


def test_an_integer_is_explained_on_the_runs_own_data(shell: Shell, run_folder: Path) -> None:
    told = shell("explain", "run", "conv2", "--at", "0,3,2,1")
    assert told.code == 0
    assert told.out.startswith("relu2[0,3,2,1] = code ")
    assert all(len(line) <= 80 for line in told.out.splitlines())
    found = json.loads(shell("explain", "run", "conv2", "--at", "0,3,2,1", "--json", "--terms", "2").out)
    assert {"node", "index", "steps", "code", "real"} <= set(found)
    assert f"= code {found['code']}, " in told.out.splitlines()[0]
    assert len(next(step["rows"] for step in found["steps"] if step["name"] == "products")) == 3
    other = json.loads(shell("explain", "run", "x", "--at", "0,0,3,3", "--json", "--input", "9").out)
    assert other["float"] != json.loads(shell("explain", "run", "x", "--at", "0,0,3,3", "--json").out)["float"]


def test_other_data_and_another_instruction_set_are_taken(shell: Shell, run_folder: Path) -> None:
    write_npz(Path("mine.npz"), x=np.random.default_rng(0).normal(size=(10, 1, 8, 8)))
    found = json.loads(
        shell("explain", "run", "conv2", "--at", "0,0,0,0", "--data", "npz:mine.npz", "--isa", "avx2", "--json").out
    )
    assert found["target"] == "onnxruntime@avx2"


def test_every_bias_is_told_or_that_of_one_layer(shell: Shell, run_folder: Path) -> None:
    found = json.loads(shell("explain", "run", "--bias", "--json").out)
    assert [layer["node"] for layer in found["layers"]] == ["conv1", "conv2", "fc1", "fc2"]
    assert [len(layer["channels"]) for layer in found["layers"]][-1] == 10
    assert shell("explain", "run", "--bias").out.splitlines()[3].split()[:2] == ["layer", "channel"]
    assert shell("explain", "run", "fc2", "--bias").out.startswith("fc2: 10 channels, int32 biases")


def test_pytorchs_engines_explain_their_integers_too(shell: Shell) -> None:
    made = ("quantize", "simplecnn", "--random-weights", "--calibration", "64", "--out")
    for target, held in (("fbgemm", "float32"), ("qnnpack", "int32")):
        assert shell(*made, target, "--target", target).code == 0
        found = json.loads(shell("explain", target, "conv2", "--at", "0,3,2,1", "--json").out)
        assert (found["made"], found["kernel"]) == ("relu2", f"{target}.conv")
        assert next(step for step in found["steps"] if step["name"] == "bias")["held"] == held
        assert found["code"] == found["steps"][-3]["value"]
        layers = json.loads(shell("explain", target, "--bias", "--json").out)["layers"]
        assert {layer["held"] for layer in layers} == {held}
        assert all(channel["code"] is not None for layer in layers for channel in layer["channels"])
    assert "keeps biases in float32 and rounds none" in " ".join(shell("explain", "fbgemm", "--bias").out.split())
    assert "is outside of `conv2`, whose shape is (1, 32, 4, 4)" in shell("explain", "fbgemm", "conv2", "--at", "0,3,2,99").said


def test_a_python_file_is_not_executed_unasked(shell: Shell) -> None:
    assert shell("quantize", "mine.py:two", "--data", "mine.py:pairs", "--out", "two").code == 0
    name = next(iter(load("two").grids))
    assert "give it with --data" in shell("explain", "two", name, "--at", "0,0").said
    assert shell("explain", "two", "image", "--at", "0,0,0,0", "--data", "mine.py:pairs").code == 0
    assert shell("explain", "two", "--bias").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run conv2 --at 0,3,2,99", "is outside of `conv2`, whose shape is (1, 32, 4, 4): axis 3 takes 0..3"),
        ("run conv2 --at 0,3", "has 2 numbers, `conv2` has 4 axes"),
        ("run conv2 --at 0,x", "--at is '0,x': whole numbers"),
        ("run conv9 --at 0", "unknown value 'conv9': did you mean 'conv2'?"),
        ("run conv2 --at 0,0,0,0 --input 100000", "has 360 samples to evaluate: take 0..359"),
        ("run conv2 --at 0,0,0,0 --input -1", "--input is -1"),
        ("run conv2 --at 0,0,0,0 --isa z80", "unknown instruction set of onnxruntime 'z80'"),
        ("run conv2", "Name a value and an index"),
        ("run --at 0", "Name a value and an index"),
        ("run --bias --at 0", "give one of them"),
        ("run conv9 --bias", "unknown layer with a bias 'conv9'"),
        ("nowhere conv2 --at 0", "there is no run folder nowhere"),
    ],
)
def test_misuse_is_one_line(shell: Shell, run_folder: Path, arguments: str, message: str) -> None:
    answer = shell("explain", *arguments.split())
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.said
