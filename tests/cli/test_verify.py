"""`exactq verify`, `plan`, `quantize`, `export` and `targets` from the shell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exactq.cli import VERBS
from exactq.plans.document import from_yaml, to_yaml
from exactq.targets import TARGETS

from .conftest import Shell, write_npz

KEYS = {"runtime", "version", "isa", "elements", "mismatches", "max_lsb", "tensors", "unverified"}


def tamper(path: Path) -> None:
    """Change one code of one weight."""
    model = onnx.load(path)
    weight = next(i for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 4)
    codes = numpy_helper.to_array(weight).copy()
    codes.flat[4] += 1 if codes.flat[4] < 100 else -1
    weight.CopyFrom(numpy_helper.from_array(codes, weight.name))
    onnx.save(model, path)


@pytest.mark.runtime
def test_verify_compares_every_tensor_of_a_run(shell: Shell, run_folder: Path) -> None:
    verdict = json.loads(shell("verify", "run", "--json", "--inputs", "100").out)
    assert set(verdict) >= KEYS
    assert (verdict["inputs"], verdict["mismatches"], verdict["max_lsb"], verdict["unverified"]) == (100, 0, 0, [])
    assert verdict["elements"] == sum(t["elements"] for t in (*verdict["tensors"], *verdict["outputs"])) > 100_000
    told = shell("verify", "run")
    assert (told.code, told.out.splitlines()[0]) == (0, "tensor\telements\tmismatches\tmax LSB")
    assert "verdict    ok\n" in told.out


@pytest.mark.runtime
def test_a_tampered_artifact_differs_and_is_named(shell: Shell, run_folder: Path) -> None:
    tamper(run_folder / "model.onnx")
    answer = shell("verify", "run", "--json")
    verdict = json.loads(answer.out)
    assert (answer.code, verdict["mismatches"] > 0, verdict["max_lsb"] > 0) == (1, True, True)
    assert next(t["name"] for t in verdict["tensors"] if t["mismatches"]) == "relu1"
    assert "model.onnx is not the file that the run wrote" in answer.err
    told = shell("verify", "run")
    assert (told.code, "verdict    differs\n" in told.out) == (1, True)


@pytest.mark.runtime
def test_verify_takes_other_data(shell: Shell, run_folder: Path) -> None:
    write_npz(Path("my data.npz"), x=np.random.default_rng(0).normal(size=(10, 1, 8, 8)))
    verdict = json.loads(shell("verify", "run", "--json", "--data", "npz:my data.npz").out)
    assert (verdict["inputs"], verdict["mismatches"]) == (5, 0)


def test_a_run_on_a_python_file_is_verified_when_the_file_is_named_again(shell: Shell) -> None:
    assert shell("quantize", "mine.py:two", "--data", "mine.py:pairs", "--out", "two").code == 0
    assert shell("verify", "two").code == 2
    assert shell("verify", "two", "--data", "mine.py:pairs").code == 0


def test_quantize_gives_a_folder_and_export_the_same_bytes(shell: Shell) -> None:
    answer = shell("quantize", "simplecnn", "--json", "--out", "q")
    facts = json.loads(answer.out)
    assert set(facts) == {"out", "model", "target", "recipe", "size", "notes"}
    assert facts["size"]["weights"] == [{"format": "int8", "values": 144 + 4608 + 8192 + 640, "bits": 8, "stored_bits": 8}]
    assert shell("export", "q", "--out", "here.onnx").out == "here.onnx\n"
    assert Path("here.onnx").read_bytes() == Path("q/model.onnx").read_bytes()
    assert len(Path("here.onnx").read_bytes()) == facts["size"]["artifact_bytes"]


def test_the_plan_on_stdout_is_the_plan_in_the_file(shell: Shell) -> None:
    answer = shell("plan", "simplecnn", "--out", "p.yaml", "--recipe", "portable")
    text = Path("p.yaml").read_text()
    plan = from_yaml(text)
    assert to_yaml(plan) == text
    rows = [line.split("\t") for line in answer.out.splitlines()]
    assert rows[0] == ["value", "format", "grid", "observer", "reason"]
    assert [row[0] for row in rows[1:]] == list(plan.slots)
    assert all(len(row) == 5 and row[4] for row in rows)
    assert shell("plan", "simplecnn", "--out", "p.yaml", "--force").code == 0


def test_targets_lists_what_was_measured(shell: Shell) -> None:
    found = json.loads(shell("targets", "--json").out)
    assert all(set(entry) == {"target", "version", "isas", "here"} for entry in found)
    assert [entry["target"] for entry in found] == list(TARGETS)
    assert shell("targets").out.splitlines()[1].startswith("onnxruntime\t")


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_every_option_of_a_verb_says_what_it_does(shell: Shell, verb: object) -> None:
    text = shell(verb.__name__, "--help").out  # type: ignore[attr-defined]
    options = [line for line in text.splitlines() if line.lstrip().startswith("--")]
    assert options
    assert all(len(line.split()) > 2 for line in options)
