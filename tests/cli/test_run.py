"""`exactq run`: what it prints, the contract of its JSON, and each verdict with its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from exactq.cli.run import told

from .conftest import Shell, files_below

FACTS = {"out", "model", "target", "recipe", "metric", "coverage", "size", "latency", "verify", "verdict"}
INSIDE = {
    "metric": {"name", "float", "ptq", "qat", "deployed"},
    "size": {"float_bytes", "artifact_bytes"},
    "latency": {"float_ms", "artifact_ms", "ratio"},
    "verify": {"runtime", "version", "isa", "elements", "mismatches", "max_lsb", "tensors", "unverified"},
}
FLOAT_RECIPE = "rules:\n  - {match: {op: conv}, float: true}\n  - {match: {op: linear}, float: true}\n"


def test_json_is_one_document_with_every_key_of_the_contract(shell: Shell) -> None:
    answer = shell("run", "simplecnn", "--yes", "--json", "--out", "a b/größe")
    facts = json.loads(answer.out)
    assert (answer.code, facts["verdict"], facts["out"]) == (0, "ok", "a b/größe")
    assert set(facts) >= FACTS
    assert all(set(facts[key]) >= inside for key, inside in INSIDE.items())
    assert (facts["metric"]["qat"], facts["coverage"]) == (None, 1.0)
    assert set(facts["verify"]["tensors"][0]) == {"name", "elements", "mismatches", "max_lsb"}
    assert {p.name for p in Path("a b/größe").iterdir()} >= {
        "plan.yaml",
        "model.onnx",
        "metrics.json",
        "verify.json",
        "manifest.json",
    }
    assert [p.name for p in Path("a b").iterdir()] == ["größe"]


def test_a_run_tells_its_verdict_on_stdout_and_its_way_on_stderr(shell: Shell) -> None:
    answer = shell("run", "simplecnn", "--recipe", "w8a8-linear-w4")
    assert answer.out.startswith("verdict    ok\n")
    assert answer.out.endswith("out        runs/simplecnn-onnxruntime\n")
    assert "int4 weights are stored in 8 bits" in answer.out
    assert [line.split()[0] for line in answer.err.splitlines()] == ["model", "graph", "plan", "measured"]
    assert "\x1b" not in answer.out + answer.err


def test_verbose_shows_the_graph_and_every_value(shell: Shell) -> None:
    told = shell("run", "simplecnn", "--yes", "--verbose").err
    assert "bn1 folded into conv1" in told
    assert "conv1.bias\tint32 x × conv1.weight\t" in told


def test_an_onnx_file_is_run_like_any_model(shell: Shell) -> None:
    rng = np.random.default_rng(0)
    sizes = {"w": (4, 3, 3, 3), "b": (4,), "fc": (4, 3)}
    constants = [numpy_helper.from_array(rng.normal(size=size).astype(np.float32), name) for name, size in sizes.items()]
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["features/Conv"]),
        helper.make_node("Relu", ["features/Conv"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("image", [1, 3, 8, 8]), ("logits", [1, 3]))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    Path("net.onnx").write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)]).SerializeToString())
    answer = shell("run", "net.onnx", "--data", "mine.py:images", "--yes", "--json")
    assert answer.out, answer.err
    facts = json.loads(answer.out)
    assert (facts["model"], facts["out"], facts["coverage"]) == ("net", "runs/net.onnx-onnxruntime", 1.0)
    assert (answer.code, facts["verify"]["mismatches"]) == (int(facts["verdict"] != "ok"), 0)
    assert {t["name"] for t in facts["verify"]["tensors"]} >= {"image", "features", "pooled"}
    assert "model      net: net.onnx, opset 12; data mine.py:images" in answer.err
    assert shell("verify", facts["out"], "--data", "mine.py:images").code == 0
    again = shell("run", f"{facts['out']}/model.onnx", "--data", "mine.py:images", "--yes")
    assert again.code == 2
    assert "the file is quantized already; give the float file" in again.said


def test_several_inputs_and_outputs_and_a_factory_that_prints(shell: Shell) -> None:
    answer = shell("run", "mine.py:two", "--data", "mine.py:pairs", "--yes", "--json")
    facts = json.loads(answer.out)
    assert (answer.code, facts["verdict"], facts["metric"]["name"]) == (0, "ok", "cosine")
    assert "a factory that prints" in answer.err
    assert any(text.startswith("softmax: ") for text in facts["verify"]["unverified"])
    assert any(text.startswith("`softmax` in float: ") for text in facts["notes"])


def test_a_file_that_other_instruction_sets_would_read_otherwise_says_so(shell: Shell) -> None:
    target = ("--target", "onnxruntime@avx512vnni")
    narrow = json.loads(shell("run", "simplecnn", "--yes", "--json", "--recipe", "w8a8", *target).out)
    assert any("the recipe `portable` keeps int16 pairs from saturating" in note for note in narrow["notes"])
    portable = json.loads(shell("run", "simplecnn", "--yes", "--json", "--recipe", "portable", *target).out)
    assert portable["notes"] == []


@pytest.mark.parametrize(
    ("arguments", "verdict", "code"),
    [
        ("mine.py:classifier --data mine.py:images --metric mine.py:distinct --max-drop 0", "over_budget", 1),
        ("mine.py:classifier --data mine.py:images --metric cosine --max-error 0", "over_budget", 1),
        ("mine.py:classifier --data mine.py:images --metric cosine --max-error 9", "ok", 0),
        ("mine.py:unquantizable --data mine.py:images --metric cosine", "not_quantized", 1),
        ("simplecnn --recipe float.yaml", "not_quantized", 1),
        ("simplecnn --random-weights", "untrained", 0),
        ("mine.py:classifier --random-weights --input-shape 1,3,8,8", "untrained", 0),
        ("mine.py:zero --data mine.py:images --metric cosine", "ok", 0),
    ],
)
def test_verdict_and_exit_code(shell: Shell, arguments: str, verdict: str, code: int) -> None:
    Path("float.yaml").write_text(FLOAT_RECIPE)
    answer = shell("run", *arguments.split(), "--json", "--out", "out")
    assert (json.loads(answer.out)["verdict"], answer.code) == (verdict, code), answer.err
    assert json.loads(Path("out/metrics.json").read_text())["verdict"] == verdict


def test_an_edited_plan_is_carried_out_and_a_bad_one_is_over_budget(shell: Shell) -> None:
    assert shell("plan", "simplecnn").code == 0
    lines = Path("plan.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("  fc2: ")]
    Path("plan.yaml").write_text("\n".join([*kept, "  fc2: {fixed: uint8, scale: 0.0001, zero: 0, reason: a mistake}"]) + "\n")
    answer = shell("run", "simplecnn", "--plan", "plan.yaml", "--json")
    facts = json.loads(answer.out)
    assert (answer.code, facts["verdict"]) == (1, "over_budget")
    assert facts["metric"]["deployed"] < facts["metric"]["float"]
    assert "a mistake" in Path("runs/simplecnn-onnxruntime/plan.yaml").read_text()


def test_a_run_replaces_the_one_before_and_nothing_else(shell: Shell, run_folder: Path) -> None:
    (run_folder / "model.onnx").write_bytes(b"old")
    assert shell("run", "simplecnn", "--out", "run", "--yes").code == 0
    assert (run_folder / "model.onnx").read_bytes() != b"old"
    before = files_below(run_folder) | {"notes.txt": b"mine"}
    (run_folder / "notes.txt").write_bytes(b"mine")
    answer = shell("run", "simplecnn", "--out", "run", "--yes")
    assert (answer.code, "notes.txt" in answer.said) == (2, True)
    assert files_below(run_folder) == before


def test_same_command_same_model_plan_and_artifact(shell: Shell) -> None:
    for out in "a", "b":
        shell("quantize", "simplecnn", "--out", out, "--seed", "3")
    names = ("plan.yaml", "graph.json", "graph.safetensors", "float.json", "float.safetensors", "model.onnx", "manifest.json")
    first, second = (files_below(Path(out)) for out in "ab")
    assert {n: first[n] for n in names if n != "manifest.json"} == {n: second[n] for n in names if n != "manifest.json"}


def test_told_says_what_is_known_of_outputs_that_cannot_be_compared() -> None:
    facts = {
        "verdict": "ok",
        "metric": {"name": "a/long/file.py:metric", "float": 1.0, "ptq": 1.0, "deployed": 1.0},
        "coverage": None,
        "agreement": None,
        "sqnr_db": None,
        "mean_error": None,
        "layers": [],
        "size": {"float_bytes": 2048, "artifact_bytes": 1024},
        "latency": {"float_ms": 1.0, "artifact_ms": 0.5, "ratio": 2.0, "batch": 1, "threads": 1},
        "verify": {"elements": 9, "mismatches": 2, "max_lsb": 3, "inputs": 1, "runtime": "r", "version": "1", "isa": "i"}
        | {"unverified": ["x: no"]},
        "notes": ["n"],
        "out": "o",
    }
    said = dict(told(facts))
    assert said["metric"].startswith("a/long/file.py:metric: float 1.0000")
    assert said["outputs"] == "not to be compared with the float model's"
    assert said["verified"].startswith("7 of 9 integers equal on 1 inputs, off by up to 3")
    assert dict(told(facts | {"mean_error": 0.0}))["outputs"] == "identical to the float model's"
