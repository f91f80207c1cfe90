"""`exactq train` from the shell, and the way of training as a flag of `exactq run`."""

from __future__ import annotations

import json

import pytest

from .conftest import Shell

RECIPE = "weights: int2-narrow\n"


def quantized(shell: Shell) -> None:
    """A folder `run`, of two-bit weights."""
    with open("w2.yaml", "w", encoding="utf-8") as file:
        file.write(RECIPE)
    assert shell("quantize", "simplecnn", "--recipe", "w2.yaml", "--out", "run").code == 0


@pytest.mark.runtime
def test_train_writes_a_run_that_verifies(shell: Shell) -> None:
    quantized(shell)
    told = shell("train", "run", "--epochs", "2", "--method", "exact_lsq")
    assert told.code == 0
    assert told.out.splitlines()[0] == "verdict    ok"
    assert "training   epoch 2 of 2 by distillation, exact_lsq\n" in told.out
    assert told.out.splitlines()[-1] == "out        run-trained"
    assert "by the runtime's own arithmetic with learned steps" in told.err
    assert shell("verify", "run-trained").code == 0


def test_the_facts_are_one_json_document(shell: Shell) -> None:
    quantized(shell)
    facts = json.loads(shell("train", "run", "--epochs", "1", "--train-samples", "96", "--json", "--out", "b").out)
    assert (facts["out"], facts["training"]["method"], facts["metric"]["name"]) == ("b", "exact", "accuracy")


def test_a_training_that_does_not_help_is_an_honest_no(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"best": 0, "epochs": 3, "objective": "labels", "method": "exact", "failed": None}
    facts = {"out": None, "training": training, "metric": {"name": "accuracy", "before": 1.0, "after": 1.0}, "notes": []}
    monkeypatch.setattr("exactq.runs.training.train_run", lambda run, **asked: facts)
    told = shell("train", "run")
    assert (told.code, told.out) == (
        1,
        "verdict    did not help\ntraining   no epoch of 3 was better on held-out samples\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nothing"), "there is no run folder nothing"),
        (("train", "nothing", "--method", "exactly"), "there is no run folder nothing"),
        (("run", "simplecnn", "--method", "lsqq"), "unknown method of training 'lsqq': did you mean 'lsq'?"),
    ],
)
def test_misuse_is_one_line(shell: Shell, arguments: tuple[str, ...], message: str) -> None:
    told = shell(*arguments)
    assert told.code == 2
    assert message in told.said


@pytest.mark.slow
@pytest.mark.runtime
def test_a_run_trains_by_the_way_that_is_asked_for(shell: Shell) -> None:
    with open("w2.yaml", "w", encoding="utf-8") as file:
        file.write(RECIPE)
    asked = ("run", "simplecnn", "--recipe", "w2.yaml", "--epochs", "2", "--method", "lsq", "--json")
    facts = json.loads(shell(*asked).out)
    assert facts["training"]["method"] == "lsq"
    assert facts["metric"]["qat"] > facts["metric"]["ptq"] + 0.1
    assert "--method lsq" in facts["command"]
    assert facts["verify"]["mismatches"] == 0
