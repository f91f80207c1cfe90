"""`exactq bench` from the shell: one document, a table that fits, a folder that stays as it was."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from .conftest import Shell, files_below

pytestmark = pytest.mark.runtime

QUICK = ("--seconds", "0.01")


def test_bench_measures_each_case_and_writes_nothing(shell: Shell, run_folder: Path) -> None:
    before = files_below(run_folder)
    answer = shell("bench", "run", "--json", "--batch", "1,16", *QUICK)
    facts = json.loads(answer.out)
    assert (answer.code, answer.err) == (0, "")
    assert (facts["run"], facts["runtime"]) == ("run", "onnxruntime")
    assert facts["size"]["artifact_bytes"] == (run_folder / "model.onnx").stat().st_size
    assert [(case["batch"], case["threads"]) for case in facts["cases"]] == [(1, 1), (16, 1)]
    for case in facts["cases"]:
        assert case["rounds"] >= 5
        for file in ("float", "quantized"):
            cost = case[file]
            assert cost["throughput"] == case["batch"] * 1000 / cost["median_ms"]
            assert 0 < cost["min_ms"] <= cost["quartiles_ms"][0] <= cost["median_ms"] <= cost["quartiles_ms"][1]
            assert 0 < cost["resident_bytes"] <= cost["peak_bytes"]
    assert files_below(run_folder) == before


def test_a_pipe_gets_whole_rows_and_what_they_mean(shell: Shell, run_folder: Path) -> None:
    answer = shell("bench", "run", "--data", "digits", *QUICK)
    lines = answer.out.splitlines()
    assert lines[0].split("\t") == ["batch", "threads", "file", "ms", "quartiles", "least", "samples/s", "MiB"]
    assert [line.split("\t")[:3] for line in lines[1:3]] == [["1", "1", "float"], ["1", "1", "quantized"]]
    assert [line.split()[0] for line in lines[3:]] == ["speed", "size", "runtime"]
    assert any(f"speed      {word}: " in lines[3] for word in ("faster", "slower", "about the same"))
    assert answer.err == ""


@pytest.mark.parametrize("columns", [40, 80])
def test_it_fits_the_terminal(shell: Shell, run_folder: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    for name, value in (("COLUMNS", str(columns)), ("TERM", "xterm"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    text = shell("bench", "run", "--batch", "64", *QUICK).out
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    assert max(map(len, lines)) <= columns
    words = [line.split() for line in lines if line.strip()]
    assert "quantized" in {word for line in words for word in line}
    assert (["batch", "threads", "file", "ms", "quartiles", "least", "samples/s", "MiB"] in words) == (columns == 80)


def test_a_foreign_artifact_is_named_and_a_broken_one_refused(shell: Shell, run_folder: Path) -> None:
    artifact = run_folder / "model.onnx"
    artifact.write_bytes(artifact.read_bytes() + b"\x12\x00")  # the producer's name once more, empty
    answer = shell("bench", "run", *QUICK)
    assert (answer.code, "model.onnx is not the file that the run wrote" in answer.err) == (0, True)
    artifact.write_bytes(b"\x00" * 40)
    answer = shell("bench", "run", *QUICK)
    assert (answer.code, answer.out, "cannot load the model" in answer.said) == (2, "", True)


FIXED = """
class Fixed(nn.Module):
    def forward(self, x):
        return torch.relu(x + torch.ones(2, 3, 8, 8))

def twos():
    return [x[:2] for x, _ in images()]
"""


def test_a_model_of_a_fixed_batch_is_measured_on_it_alone(shell: Shell) -> None:
    with Path("mine.py").open("a") as file:
        file.write(FIXED)
    assert shell("quantize", "mine.py:Fixed", "--data", "mine.py:twos", "--out", "fixed").code == 0
    (case,) = json.loads(shell("bench", "fixed", "--json", *QUICK).out)["cases"]
    assert case["batch"] == 2
    answer = shell("bench", "fixed", "--batch", "1", *QUICK)
    assert answer.code == 2
    assert answer.said == "exactq: --batch is 1; the model has fixed shapes and only takes batches of 2"
    assert shell("bench", "fixed", "--data", "mine.py:twos", *QUICK).code == 0


def test_a_run_on_a_python_file_needs_no_data(shell: Shell) -> None:
    assert shell("quantize", "mine.py:two", "--data", "mine.py:pairs", "--out", "two").code == 0
    Path("mine.py").unlink()
    assert shell("bench", "two", *QUICK).code == 0
