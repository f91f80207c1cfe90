"""`exactq train`: a run folder in, another one out that verifies; killed it goes on, and what does not help writes nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from exactq import runs
from exactq.errors import ModelError, UsageError
from exactq.quantized import load
from exactq.runs.training import train_run

SAME = ("plan.yaml", "graph.json", "graph.safetensors", "float.json", "float.safetensors", "model.onnx", "training.json")
SHORT: dict[str, Any] = {"epochs": 1, "train_samples": 128}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    (folder / "w2.yaml").write_text("weights: int2-narrow\n")
    runs.quantize("simplecnn", recipe=str(folder / "w2.yaml"), out=str(folder / "run"))
    return folder / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.runtime
@pytest.mark.parametrize("method", ["exact", pytest.param("lsq", marks=pytest.mark.slow)])
def test_a_trained_run_verifies_and_the_first_one_stays(run: Path, method: str, tmp_path: Path) -> None:
    before = contents(run)
    facts = train_run(run, method=method, out=str(tmp_path / "out"), epochs=2)
    assert (facts["model"], facts["training"]["method"], facts["training"]["samples"]) == ("simplecnn", method, 1437)
    assert facts["metric"]["before"] < 0.8 < facts["metric"]["after"]
    assert facts["metric"]["after"] == facts["training"]["history"][facts["training"]["best"]]["metric"]
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == facts["training"]
    assert runs.verify_run(tmp_path / "out").equal
    assert contents(run) == before
    assert load(tmp_path / "out").plan == load(run).plan
    again = train_run(tmp_path / "out", method="exact", **SHORT)  # what was trained can be trained on
    assert again["out"] in (None, str(tmp_path / "out-trained"))


def test_a_training_that_does_not_help_writes_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exactq.runs.tuning.tune", _worse)
    facts = train_run(run, method="exact", out=str(tmp_path / "out"), **SHORT)
    assert (facts["out"], facts["training"]["best"]) == (None, 0)
    assert list(tmp_path.iterdir()) == []


def _worse(quantized: Any, split: Any, **asked: Any) -> Any:
    from exactq.training.tuning import tune

    asked |= {"watch": None, "evaluate": (lambda scores: lambda model: next(scores))(iter((1.0, 0.5, 0.5)))}
    return tune(quantized, split, **asked)


def test_a_folder_without_a_manifest_needs_data(run: Path, tmp_path: Path) -> None:
    load(run).save(tmp_path / "model")
    with pytest.raises(UsageError, match="does not say on which data it was made: name some with --data"):
        train_run(tmp_path / "model")
    facts = train_run(tmp_path / "model", data="digits", **SHORT)
    assert facts["out"] == str(tmp_path / "model-trained")


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"method": "exakt"}, "unknown method of training 'exakt': did you mean 'exact'"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"objective": "label"}, "did you mean 'labels'"),
        ({"data": "digit"}, "did you mean"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_done(run: Path, wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_run(run, **wishes)
    assert not run.with_name("run-trained").exists()


def test_a_run_is_not_trained_into_itself_and_must_be_one(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the run that is trained: choose another folder"):
        train_run(run, out=str(run))
    with pytest.raises(UsageError, match="there is no run folder"):
        train_run(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="is no folder of a quantized model"):
        train_run(tmp_path / "empty", data="digits")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exact", "exact_lsq"])
def test_a_killed_training_ends_with_the_same_bytes(run: Path, method: str, tmp_path: Path) -> None:
    ask: dict[str, Any] = {"method": method, "epochs": 4}

    def start(out: Path) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                train_run(run, out=str(out), **ask)
                code = 0
            finally:
                os._exit(code)
        return child

    begun = time.monotonic()
    assert os.waitpid(start(tmp_path / "whole"), 0)[1] == 0
    seconds = time.monotonic() - begun
    for share in (0.3, 0.5, 0.7):
        child = start(tmp_path / "killed")
        time.sleep(share * seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert os.waitpid(start(tmp_path / "killed"), 0)[1] == 0
    for name in SAME:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
